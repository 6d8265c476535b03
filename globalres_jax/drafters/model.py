"""Drafts from a model: grow a token tree, one call a level."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
        """Draws a tree, one model call a level; node v lies in slot `base + v`."""
        model, base = self.model, state.cache.length
        logits, cache = self._read_root(state)
        tokens, laws = [state.root[:, None]], []
        keys = _split(keys, tree.depth)
        for level in range(tree.depth):
            drawn, level_laws = _draw_level(keys[level], tree, level, logits, policy)
            tokens.append(drawn)
            laws += level_laws
            if level + 1 < tree.depth:
                nodes = tree.levels[level + 1]
                positions = jnp.broadcast_to(base[:, None] + level + 1, drawn.shape)
                mask = tree_mask(tree, nodes, base, cache.capacity)
                logits, cache = model.apply(model.params, drawn, positions, cache, mask)
        state = state._replace(cache=cache.with_length(base))
        return Proposal(jnp.concatenate(tokens, 1), tuple(laws)), state

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
        """Logits [B, 1, V] after the root."""
        base, capacity = state.cache.length, state.cache.capacity
        rows = jnp.stack([jnp.zeros_like(base), jnp.ones_like(base)], axis=1)
        place = base[:, None] - 1 + rows
        logits, cache = self.model.apply(
            self.model.params,
            jnp.stack([state.previous, state.root], axis=1),
            jnp.maximum(place, 0),
            state.cache.with_length(base - 1),
            jnp.arange(capacity)[None, None, :] <= place[:, :, None],
        )
        return logits[:, 1:], cache


def _draw_level(
    keys: Array, tree: TokenTree, level: int, logits: Array, policy: DraftPolicy
) -> tuple[Array, list]:
    """The tokens of the level below, and the laws of its sibling groups.

    Args:
      keys: [B].
      tree: shape of the tree.
      level: of the nodes whose children are drawn.
      logits: [B, W, V] after all W nodes of that level.
      policy: how to draw from them.
    """
    members = tree.levels[level]
    first_child = tree.levels[level + 1][0]
    groups = [group for group in tree.groups if group.level == level]
    tokens = jnp.zeros((len(logits), len(tree.levels[level + 1])), jnp.int32)
    keys = [keys] if len(groups) == 1 else _split(keys, len(groups))
    laws = []
    for group, group_keys in zip(groups, keys, strict=True):
        places = group.nodes - members[0]
        # All of a level is no selection, which XLA would make a copy of.
        rows = logits if len(places) == len(members) else logits[:, places]
        law = policy.law(rows, level, group.num_children)
        split = functools.partial(jax.random.split, num=len(places))
        node_keys = jax.vmap(split)(group_keys)
        drawn = jax.vmap(jax.vmap(lambda one, key: one.sample(key)))(law, node_keys)
        tokens = tokens.at[:, group.children - first_child].set(drawn)
        laws.append(law)
    return tokens, laws


def _split(keys: Array, count: int) -> tuple[Array, ...]:
    """`count` keys of each row: arrays [B]."""
    return jax.vmap(lambda key: tuple(jax.random.split(key, count)))(keys)
