"""Drafts from a model: grow a token tree, one call a level."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import (
    NO_TOKEN,
    Array,
    Cache,
    DraftPolicy,
    Emitted,
    Model,
    Proposal,
)
from globalres_jax.cache import prefill
from globalres_jax.drafters.nothing import last_emitted, last_token
from globalres_jax.numerics.categorical import uniforms
from globalres_jax.tree import TokenTree, tree_mask


class ModelState(NamedTuple):
    """What a model has read of each row.

    Attributes:
      cache: all of the text but its last token, except perhaps `previous`.
      previous: [B] the last token but one. It is fed again: where a whole path was
        accepted, its last token was drafted but never read.
      root: [B] the last token.
    """

    cache: Cache
    previous: Array
    root: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelDrafter:
    """Drafts drawn from a model's own next-token distributions.

    Attributes:
      model: cheaper than the target, over the same vocabulary.
    """

    model: Model

    def check(self, tree: TokenTree, vocab_size: int) -> None:
        """ValueError if the vocabularies differ."""
        del tree
        if self.model.vocab_size != vocab_size:
            raise ValueError(
                f"draft: has {self.model.vocab_size} tokens, the target {vocab_size}; "
                "they must share one vocabulary"
            )

    def start(self, prompts: Array, lengths: Array, capacity: int) -> ModelState:
        """Reads all but the last token of each prompt."""
        return ModelState(
            prefill(self.model, prompts, lengths, capacity),
            last_token(prompts, lengths, back=2),
            last_token(prompts, lengths),
        )

    def propose(
        self, keys: Array, state: ModelState, tree: TokenTree, policy: DraftPolicy
    ) -> tuple[Proposal, ModelState]:
        """Draws a tree, one model call a level; node v lies in slot `base + v`.

        Equal levels are one loop, so that the model is compiled once for all of them.
        """
        base = state.cache.length
        numbers = _numbers(keys, tree)
        tokens, laws, cache = [state.root[:, None]], [], state.cache
        paths = None
        if policy.reads_paths:
            shape = len(state.root), 1, tree.depth
            paths = jnp.full(shape, NO_TOKEN, jnp.int32)
        for run in _runs(tree, policy):
            if run[0] == 0:
                logits, cache = self._read_root(state)
                drawn = [_draw_level(numbers[:, :1], tree, 0, logits, policy, paths)]
                paths = _longer(paths, drawn[0][0], tree, 0, 0)
            else:
                (cache, paths), drawn = self._grow(
                    numbers, (tokens[-1], paths), cache, base, tree, run, policy
                )
            for drawn_tokens, level_laws in drawn:
                tokens.append(drawn_tokens)
                laws += level_laws
        state = state._replace(cache=cache.with_length(base))
        return Proposal(jnp.concatenate(tokens, 1), tuple(laws)), state

    def _grow(
        self,
        numbers: Array,
        first: tuple[Array, Array | None],
        cache: Cache,
        base: Array,
        tree: TokenTree,
        run: tuple[int, ...],
        policy: DraftPolicy,
    ) -> tuple[tuple[Cache, Array | None], list]:
        """Draws the levels below a run of equal levels.

        Args:
          numbers: [B, N, n, UNIFORMS] uniform, for the children of each node.
          first: the tokens [B, W] of the first of these levels, and the paths down to
            them [B, W, D], None where they are not asked for.
          cache: with all nodes above.
          base: [B] slot of the root.
          tree: shape of the tree.
          run: the levels, R of them.
          policy: how to draw.

        Returns:
          The cache and the paths down to the last tokens, and for each level the
          tokens [B, W'] below it and their laws.
        """
        model = self.model
        nodes = jnp.asarray(np.stack([tree.levels[level] for level in run]))

        def one(carry, level):
            tokens, paths, cache = carry
            depth, here = level
            positions = jnp.broadcast_to(base[:, None] + depth, tokens.shape)
            mask = tree_mask(tree, here, base, cache.capacity)
            logits, cache = model.apply(model.params, tokens, positions, cache, mask)
            drawn, laws = _draw_level(
                numbers[:, here], tree, run[0], logits, policy, paths
            )
            paths = _longer(paths, drawn, tree, run[0], depth)
            return (drawn, paths, cache), (drawn, laws)

        carry = (*first, cache)
        if len(run) == 1:
            (_, paths, cache), drawn = one(carry, (run[0], nodes[0]))
            return (cache, paths), [drawn]
        levels = jnp.asarray(run), nodes
        (_, paths, cache), drawn = jax.lax.scan(one, carry, levels)
        each = [jax.tree.map(lambda x, i=i: x[i], drawn) for i in range(len(run))]
        return (cache, paths), each

    def commit(self, state: ModelState, emitted: Emitted) -> ModelState:
        """Keeps the path that became text."""
        base = state.cache.length
        previous = jnp.where(emitted.count > 0, state.root, state.previous)
        return ModelState(
            state.cache.keep_path(base, emitted.node[:, 1:], emitted.count),
            last_emitted(emitted, previous, back=2),
            last_emitted(emitted, state.root),
        )

    def _read_root(self, state: ModelState) -> tuple[Array, Cache]:
        """Logits [B, 1, V] after the root.

        The root lies in slot `base`, behind `previous`. A text of one token has no
        `previous`: there the root lies in slots 0 and 1, and its copy sees itself.
        """
        base, slots = state.cache.length[:, None], jnp.arange(state.cache.capacity)
        first = base == 0
        start, both = jnp.maximum(base - 1, 0), jnp.arange(2)[None, :]
        mask = slots[None, None, :] <= (start + both)[:, :, None]
        alone = jnp.broadcast_to(slots[None, :] == both.T, mask.shape[1:])[None]
        apply = getattr(self.model.apply, "of_last", self.model.apply)
        logits, cache = apply(
            self.model.params,
            jnp.stack([state.previous, state.root], axis=1),
            jnp.where(first, 0, start + both),
            state.cache.with_length(start[:, 0]),
            jnp.where(first[:, :, None], alone, mask),
        )
        return logits[:, -1:], cache.with_length(base[:, 0] + 1)


def _runs(tree: TokenTree, policy: DraftPolicy) -> list[tuple[int, ...]]:
    """The inner levels in order, neighbours that are alike together; the root's alone.

    Alike are levels whose nodes, families and laws are: one then follows from the other
    by one and the same step.
    """

    def shape(level: int):
        groups = [group for group in tree.groups if group.level == level]
        first, below = tree.levels[level][0], tree.levels[level + 1][0]
        families = [(g.nodes - first, g.children - below) for g in groups]
        return (
            len(tree.levels[level]),
            len(tree.levels[level + 1]),
            policy.maker(level),
            [(nodes.tolist(), children.tolist()) for nodes, children in families],
        )

    runs: list[tuple[int, ...]] = []
    for level in range(tree.depth):
        if level > 1 and shape(level) == shape(level - 1):
            runs[-1] += (level,)
        else:
            runs.append((level,))
    return runs


def _draw_level(
    numbers: Array,
    tree: TokenTree,
    level: int,
    logits: Array,
    policy: DraftPolicy,
    paths: Array | None,
) -> tuple[Array, list]:
    """The tokens of the level below, and the laws of its sibling groups.

    Args:
      numbers: [B, W, n, UNIFORMS] uniform.
      tree: shape of the tree.
      level: of the nodes whose children are drawn.
      logits: [B, W, V] after all W nodes of that level.
      policy: how to draw from them.
      paths: [B, W, D] tokens down to each of them, None where they are not asked for.
    """
    members = tree.levels[level]
    first_child = tree.levels[level + 1][0]
    groups = [group for group in tree.groups if group.level == level]
    tokens = jnp.zeros((len(logits), len(tree.levels[level + 1])), jnp.int32)
    laws = []
    for group in groups:
        places = group.nodes - members[0]
        # All of a level is no selection, which XLA would make a copy of.
        every = len(places) == len(members)
        rows = logits if every else logits[:, places]
        lines = paths if every or paths is None else paths[:, places]
        law = policy.law(rows, level, group.num_children, lines)
        own = numbers[:, places, : group.num_children]
        drawn = jax.vmap(jax.vmap(lambda one, own: one.draw(own)))(law, own)
        tokens = tokens.at[:, group.children - first_child].set(drawn)
        laws.append(law)
    return tokens, laws


def _longer(
    paths: Array | None, tokens: Array, tree: TokenTree, level: int, depth: Array | int
) -> Array | None:
    """Paths [B, W', D] down to `tokens [B, W']`, one level below `paths [B, W, D]`.

    The nodes above lie as those of `level` do, and at `depth []`.
    """
    if paths is None:
        return None
    parents = tree.parents[tree.levels[level + 1]] - tree.levels[level][0]
    return paths[:, parents].at[:, :, depth].set(tokens)


def _numbers(keys: Array, tree: TokenTree) -> Array:
    """Uniform numbers for all draws of a tree: [B, N, n, UNIFORMS], n children."""
    shape = tree.num_nodes, int(tree.num_children.max())
    return jax.vmap(lambda key: uniforms(key, shape))(keys)
