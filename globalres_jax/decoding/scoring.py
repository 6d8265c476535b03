"""Scoring: one call of the target on all nodes of a drafted tree."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Cache
from globalres_jax.decoding.options import broken_rows
from globalres_jax.decoding.penalties import TextCounts, adjusted, paths_of
from globalres_jax.decoding.state import Request, reads_features
from globalres_jax.tree import tree_mask


def score(cache: Cache, tokens: Array, request: Request) -> tuple[Array, Cache]:
    """2. Logits [B, N, V] after every node [B, N], from one call of the target.

    The tree then lies in the cache behind the text, whose length stays what it was.
    """
    target, places = request.target, _places(cache, request)
    logits, scored = target.apply(target.params, tokens, *places)
    return logits, scored.with_length(cache.length)


def score_as_read(
    cache: Cache, tokens: Array, request: Request
) -> tuple[Array, Array | None, Cache]:
    """`score`, with the features [B, N, F] of the nodes where the drafter reads them.

    None where it does not.
    """
    if not reads_features(request.drafter):
        logits, cache = score(cache, tokens, request)
        return logits, None, cache
    target, places = request.target, _places(cache, request)
    apply = target.apply.with_features
    logits, features, scored = apply(target.params, tokens, *places)
    return logits, features, scored.with_length(cache.length)


def _places(cache: Cache, request: Request) -> tuple[Array, Cache, Array]:
    """Positions [B, N] of the tree's nodes, the cache, and what each node sees."""
    tree, base = request.config.token_tree, cache.length
    mask = tree_mask(tree, np.arange(tree.num_nodes), base, cache.capacity)
    return base[:, None] + jnp.asarray(tree.depths)[None, :], cache, mask


def as_asked(
    logits: Array, tokens: Array, counts: TextCounts | None, request: Request
) -> tuple[Array, Array]:
    """Logits [B, N, V] after bias and penalties, and which rows are broken [B, N].

    Args:
      logits: [B, N, V] of the target after every node.
      tokens: [B, N] at the nodes.
      counts: of the text.
      request: what is asked for.
    """
    broken = broken_rows(logits)
    if not request.options.changes_logits:
        return logits, broken
    paths = paths_of(request.config.token_tree, tokens)
    asked = adjusted(logits, paths, request.options, counts, request.ends)
    # Of what a model allows the options may forbid all.
    return asked, broken | broken_rows(asked)
