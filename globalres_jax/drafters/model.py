"""Drafting: grow a token tree with the draft model, keeping q at every node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, Model
from globalres_jax.tree import TokenTree, tree_mask


class DraftedTree(NamedTuple):
    """Tokens of a tree and the laws they were drawn from.

    Attributes:
      tokens: [B, N] token at each node; node 0 holds the root.
      q: [B, I, V] the draft distribution at each internal node: its children are
        drawn from exactly this.
      cache: the draft model's cache; node v lies in slot `base + v` (the last
        level was never fed).
    """

    tokens: Array
    q: Array
    cache: Cache


def draft_tree(
    keys: Array,
    draft: Model,
    cache: Cache,
    previous: Array,
    root: Array,
    tree: TokenTree,
    law: Callable[..., Any],
    to_probabilities: Callable[[Array], Array],
) -> DraftedTree:
    """Draws a token tree, one model call a level.

    Args:
      keys: [B] one key a row.
      draft: the draft model.
      cache: its cache, all committed tokens in it except perhaps the last one.
      previous: [B] the last committed token. It is fed again: where a whole path
        was accepted, its last token was drafted but never read.
      root: [B] the last emitted token, not yet in the cache.
      tree: shape of the tree, at least one level deep.
      law: `law(q, num_drafts)`, of which the children of a node are a sample.
      to_probabilities: logits to the distribution that is sampled.

    Returns:
      A `DraftedTree`; the cache's committed length is unchanged plus the tree.
    """
    base = cache.length
    capacity = cache.capacity
    rows = jnp.stack([jnp.zeros_like(base), jnp.ones_like(base)], axis=1)
    start = base[:, None] - 1 + rows
    seen = jnp.arange(capacity)[None, None, :] <= start[:, :, None]
    logits, cache = draft.apply(
        draft.params,
        jnp.stack([previous, root], axis=1),
        jnp.maximum(start, 0),
        cache._replace(length=base - 1),
        seen,
    )
    logits = logits[:, 1:]
    tokens, q = [root[:, None]], []
    level_keys = jax.vmap(lambda key: tuple(jax.random.split(key, tree.depth)))(keys)

    def children(key: Array, q_level: Array, num_children: int) -> Array:
        """[W * num_children] tokens below the W nodes of a level of one row."""
        node_keys = jax.random.split(key, q_level.shape[0])
        drawn = jax.vmap(lambda k, row: law(row, num_children).sample(k))
        return drawn(node_keys, q_level).reshape(-1)

    for level, num_children in enumerate(tree.branching):
        q.append(to_probabilities(logits))
        drawn = jax.vmap(children, in_axes=(0, 0, None))(
            level_keys[level], q[-1], num_children
        )
        tokens.append(drawn)
        if level + 1 < tree.depth:
            nodes = tree.levels[level + 1]
            positions = jnp.broadcast_to(base[:, None] + level + 1, drawn.shape)
            mask = tree_mask(tree, nodes, base, capacity)
            logits, cache = draft.apply(draft.params, drawn, positions, cache, mask)
    return DraftedTree(jnp.concatenate(tokens, 1), jnp.concatenate(q, 1), cache)
