"""Drafts from a model: grow a token tree, one call a level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import (
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
      ids: [N] the tokens that its logits [B, L, N] are of, all different; None where
        they are of the whole vocabulary. Other tokens are never drafted.
    """

    model: Model
    ids: Array | None = None

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
        """Draws a tree below the root, see `grow_tree`."""
        if not tree.depth:
            return Proposal(state.root[:, None], ()), state
        base, model = state.cache.length, self.model

        def first() -> tuple[Array, tuple, Cache]:
            logits, cache = self._read_root(state)
            return logits, (), cache

        def read(tokens, handed, positions, cache, mask) -> tuple[Array, tuple, Cache]:
            logits, cache = model.apply(model.params, tokens, positions, cache, mask)
            return logits, handed, cache

        calls = Calls(first, read, self.ids)
        proposal, cache = grow_tree(keys, state.root, base, calls, tree, policy)
        return proposal, state._replace(cache=cache.with_length(base))

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


class Calls(NamedTuple):
    """A draft model's part in growing a tree.

    What a node hands to its children is a pytree of arrays [B, W, ...], for W nodes.

    Attributes:
      first: `first() -> (logits [B, 1, K] after the root, what it hands on, cache)`.
      read: `read(tokens [B, W], handed, positions, cache, mask) -> (logits [B, W, K],
        what they hand on, cache)`, as a `ModelFn` appends them to the cache; `handed`
        is what each got from its parent.
      ids: [K] the tokens that the logits are of; None for the whole vocabulary.
    """

    first: Callable[[], tuple[Array, Any, Cache]]
    read: Callable[..., tuple[Array, Any, Cache]]
    ids: Array | None


def grow_tree(
    keys: Array,
    root: Array,
    base: Array,
    calls: Calls,
    tree: TokenTree,
    policy: DraftPolicy,
) -> tuple[Proposal, Cache]:
    """Draws a tree, one model call a level; node v lies in slot `base + v`.

    Equal levels are one loop, so that the model is compiled once for all of them.

    Args:
      keys: [B] random keys.
      root: [B] token at the root.
      base: [B] its slot.
      calls: of the model.
      tree: shape of the tree, at least one level below its root.
      policy: how to draw.

    Returns:
      The tree, and the cache with its inner nodes.
    """
    numbers = _numbers(keys, tree)
    tokens, laws = [root[:, None]], []
    for run in _runs(tree, policy):
        if run[0] == 0:
            logits, handed, cache = calls.first()
            drawn = [_draw_level(numbers[:, :1], tree, 0, logits, policy, calls.ids)]
            handed = _hand_on(handed, tree, 0)
        else:
            (handed, cache), drawn = _grow(
                numbers, (tokens[-1], handed, cache), base, calls, tree, run, policy
            )
        for drawn_tokens, level_laws in drawn:
            tokens.append(drawn_tokens)
            laws += level_laws
    return Proposal(jnp.concatenate(tokens, 1), tuple(laws)), cache


def _grow(
    numbers: Array,
    above: tuple[Array, Any, Cache],
    base: Array,
    calls: Calls,
    tree: TokenTree,
    run: tuple[int, ...],
    policy: DraftPolicy,
) -> tuple[tuple[Any, Cache], list]:
    """Draws the levels below a run of equal levels.

    Args:
      numbers: [B, N, n, UNIFORMS] uniform, for the children of each node.
      above: tokens [B, W] of the first of these levels, what they were handed, and the
        cache with all nodes above.
      base: [B] slot of the root.
      calls: of the model.
      tree: shape of the tree.
      run: the levels, R of them.
      policy: how to draw.

    Returns:
      What the last of them hand on, and the cache; for each level the tokens [B, W']
      below it and their laws.
    """
    nodes = jnp.asarray(np.stack([tree.levels[level] for level in run]))

    def one(carry, level):
        tokens, handed, cache = carry
        depth, here = level
        positions = jnp.broadcast_to(base[:, None] + depth, tokens.shape)
        mask = tree_mask(tree, here, base, cache.capacity)
        logits, handed, cache = calls.read(tokens, handed, positions, cache, mask)
        drawn, laws = _draw_level(
            numbers[:, here], tree, run[0], logits, policy, calls.ids
        )
        return (drawn, _hand_on(handed, tree, run[0]), cache), (drawn, laws)

    if len(run) == 1:
        (_, *below), drawn = one(above, (run[0], nodes[0]))
        return tuple(below), [drawn]
    (_, *below), drawn = jax.lax.scan(one, above, (jnp.asarray(run), nodes))
    each = [jax.tree.map(lambda x, i=i: x[i], drawn) for i in range(len(run))]
    return tuple(below), each


def _hand_on(handed: Any, tree: TokenTree, level: int) -> Any:
    """From [B, W, ...] at the nodes of a level to [B, W', ...] at their children."""
    parents = tree.parents[tree.levels[level + 1]] - tree.levels[level][0]
    return jax.tree.map(lambda x: x[:, parents], handed)


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
    ids: Array | None,
) -> tuple[Array, list]:
    """The tokens of the level below, and the laws of its sibling groups.

    Args:
      numbers: [B, W, n, UNIFORMS] uniform.
      tree: shape of the tree.
      level: of the nodes whose children are drawn.
      logits: [B, W, K] after all W nodes of that level.
      policy: how to draw from them.
      ids: [K] the tokens that they are of; None for the whole vocabulary.
    """
    members = tree.levels[level]
    first_child = tree.levels[level + 1][0]
    groups = [group for group in tree.groups if group.level == level]
    tokens = jnp.zeros((len(logits), len(tree.levels[level + 1])), jnp.int32)
    laws = []
    for group in groups:
        places = group.nodes - members[0]
        # All of a level is no selection, which XLA would make a copy of.
        rows = logits if len(places) == len(members) else logits[:, places]
        named = {} if ids is None else {"tokens": ids}
        law = policy.law(rows, level, group.num_children, **named)
        own = numbers[:, places, : group.num_children]
        drawn = jax.vmap(jax.vmap(lambda one, own: one.draw(own)))(law, own)
        tokens = tokens.at[:, group.children - first_child].set(drawn)
        laws.append(law)
    return tokens, laws


def _numbers(keys: Array, tree: TokenTree) -> Array:
    """Uniform numbers for all draws of a tree: [B, N, n, UNIFORMS], n children."""
    shape = tree.num_nodes, int(tree.num_children.max())
    return jax.vmap(lambda key: uniforms(key, shape))(keys)
