"""Logits to probabilities: temperature, then top-k, then top-p, then min-p."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import blockwise_sum


def probabilities(
    logits: Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Array:
    """The distribution a token is sampled from.

    Args:
      logits: [..., V] of any floating type.
      temperature: divides the logits; 0 puts all mass on the first largest logit.
      top_k: keep exactly this many most likely tokens (ties: lowest id first).
      top_p: keep the fewest most likely tokens that together reach this mass.
      min_p: keep tokens at least this fraction as likely as the most likely one.

    Returns:
      [..., V] float32 (float64 for float64 logits), each row summing to 1.

    Raises:
      ValueError: an option out of range.
    """
    check_filters(temperature, top_k, top_p, min_p)
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocab_size = logits.shape[-1]
    if temperature == 0:
        best = jnp.argmax(logits, axis=-1)
        return jax.nn.one_hot(best, vocab_size, dtype=logits.dtype)
    logits = logits / temperature
    if top_k is not None and top_k < vocab_size:
        kept = jax.lax.top_k(logits, top_k)[1]
        logits = jnp.where(_members(kept, vocab_size), logits, -jnp.inf)
    probs = jax.nn.softmax(logits, axis=-1)
    if top_p is not None and top_p < 1:
        order = jnp.argsort(-probs, axis=-1)
        ranked = jnp.take_along_axis(probs, order, axis=-1)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        keep = jnp.put_along_axis(
            jnp.zeros(probs.shape, bool), order, before < top_p, -1, inplace=False
        )
        probs = jnp.where(keep, probs, 0)
    if min_p is not None:
        probs = jnp.where(probs >= min_p * probs.max(-1, keepdims=True), probs, 0)
    if top_p is not None or min_p is not None:
        probs = probs / blockwise_sum(probs)[..., None]
    return probs


def check_filters(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    """Raises ValueError naming the sampling option that is out of range."""
    if not temperature >= 0:
        raise ValueError(f"temperature: must be 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: must lie in (0, 1], got {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p: must lie in [0, 1], got {min_p}")


def normalized_residual(mass: Array, fallback: Array) -> Array:
    """`mass / sum(mass)` along the last axis, or `fallback` where the mass is zero.

    An empty residual is reached with probability zero, up to rounding; the target
    itself is then a safe thing to sample.
    """
    total = blockwise_sum(mass)[..., None]
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), fallback)


def _members(indices: Array, size: int) -> Array:
    flat = indices.reshape(-1, indices.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    members = jnp.zeros((flat.shape[0], size), bool).at[rows, flat].set(True)
    return members.reshape(*indices.shape[:-1], size)
