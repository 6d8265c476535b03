"""Log-probabilities of what is emitted, from the rows that it was verified against."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Emitted
from globalres_jax.decoding.options import SamplingOptions, mended
from globalres_jax.numerics.largest import largest
from globalres_jax.numerics.rows import map_rows
from globalres_jax.numerics.sums import blockwise_sum


class LogProbabilities(NamedTuple):
    """Natural logarithms of probabilities under the target, for each token of a text.

    Attributes:
      target: [B, T] before all sampling options.
      sampling: [B, T] after them: under the distribution that was sampled.
      top_tokens: [B, T, k] the likeliest tokens in that place; None if not asked for.
      top: [B, T, k] theirs, before all sampling options; likewise.
    """

    target: Array
    sampling: Array
    top_tokens: Array | None
    top: Array | None


def of_emitted(
    logits: Array,
    asked: Array,
    emitted: Emitted,
    broken: Array,
    options: SamplingOptions,
    top: int,
) -> LogProbabilities:
    """Those of one step, [B, D + 1]; beyond `emitted.count` they mean nothing.

    Args:
      logits: [B, N, V] of the target after every node of the tree.
      asked: [B, N, V] the same after bias and penalties.
      emitted: the tokens, and the node that each stands behind.
      broken: [B, N] bool, whether the logits say nothing; such rows emit nothing.
      options: of the rows, arrays [B].
      top: k, number of alternatives.
    """

    def at_nodes(x: Array) -> Array:
        return jax.vmap(lambda row, nodes: row[nodes])(x, emitted.node)

    def at_tokens(x: Array) -> Array:
        return jnp.take_along_axis(x, emitted.tokens[..., None], axis=-1)[..., 0]

    is_broken = at_nodes(broken)
    rows = mended(at_nodes(asked), is_broken)
    sampled = jnp.log(at_tokens(options.to_probabilities(rows)))
    own = log_softmax(mended(at_nodes(logits), is_broken))
    if not top:
        return LogProbabilities(at_tokens(own), sampled, None, None)
    flat = own.reshape(-1, own.shape[-1])
    values, tokens = map_rows(lambda row: largest(row, top), flat)
    shape = (*own.shape[:-1], top)
    alternatives = tokens.reshape(shape), values.reshape(shape)
    return LogProbabilities(at_tokens(own), sampled, *alternatives)


def log_softmax(logits: Array) -> Array:
    """Logarithms of the distributions that `logits [..., V]` are at temperature 1.

    Infinite logits share all the mass, as they do in `transforms.probabilities`.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Of two infinite numbers the difference is none.
    logits = jnp.minimum(logits, jnp.finfo(logits.dtype).max)
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    return below - jnp.log(blockwise_sum(jnp.exp(below)))[..., None]


def empty_log_probabilities(
    batch: int, size: int, top: int, filler: int
) -> LogProbabilities:
    """Room for `size` tokens a row: zeros, and `filler` for the tokens."""
    zeros = jnp.zeros((batch, size))
    if not top:
        return LogProbabilities(zeros, zeros, None, None)
    tokens = jnp.full((batch, size, top), filler, jnp.int32)
    return LogProbabilities(zeros, zeros, tokens, jnp.zeros((batch, size, top)))
