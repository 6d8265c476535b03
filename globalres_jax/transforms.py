"""Logits to probabilities: temperature, then top-k, then top-p, then min-p."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.validation import is_concrete

Option = float | int | Array


def probabilities(
    logits: Array,
    temperature: Option = 1.0,
    top_k: Option | None = None,
    top_p: Option | None = None,
    min_p: Option | None = None,
    max_top_k: int | None = None,
) -> Array:
    """The distribution a token is sampled from.

    Each option is a number, or an array with one for each row, of the shape of the
    leading axes of `logits`; None leaves a filter out.

    Args:
      logits: [..., V] of any floating type.
      temperature: divides the logits; 0 puts all mass on the first largest logit.
      top_k: keep exactly this many most likely tokens (ties: lowest id first).
      top_p: keep the fewest most likely tokens that together reach this mass.
      min_p: keep tokens at least this fraction as likely as the most likely one.
      max_top_k: no `top_k` is larger; needed where `top_k` is data, since it fixes
        shapes.

    Returns:
      [..., V] float32 (float64 for float64 logits), each row summing to 1.

    Raises:
      ValueError: an option out of range.
    """
    check_filters(temperature, top_k, top_p, min_p)
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocab_size = logits.shape[-1]
    if is_concrete(temperature) and np.all(np.asarray(temperature) == 0):
        return _greedy(logits)
    warm = _as_column(temperature, logits)
    scaled = logits / jnp.where(warm > 0, warm, 1)
    if top_k is not None and not _keeps_all(top_k, vocab_size):
        most = min(_largest_top_k(top_k, max_top_k), vocab_size)
        scaled = _keep_top_k(scaled, top_k, most)
    probs = jax.nn.softmax(scaled, axis=-1)
    if top_p is not None:
        probs = _keep_top_p(probs, _as_column(top_p, logits))
    if min_p is not None:
        least = _as_column(min_p, logits) * probs.max(-1, keepdims=True)
        probs = jnp.where(probs >= least, probs, 0)
    if top_p is not None or min_p is not None:
        probs = probs / blockwise_sum(probs)[..., None]
    if is_concrete(temperature) and np.all(np.asarray(temperature) > 0):
        return probs
    return jnp.where(warm > 0, probs, _greedy(logits))


def check_filters(
    temperature: Option,
    top_k: Option | None,
    top_p: Option | None,
    min_p: Option | None,
) -> None:
    """Raises ValueError naming the sampling option that is out of range."""
    _check("temperature", temperature, lambda x: x >= 0, "must be 0 or more")
    _check("top_k", top_k, lambda x: x >= 1, "must be at least 1")
    _check("top_p", top_p, lambda x: (x > 0) & (x <= 1), "must lie in (0, 1]")
    _check("min_p", min_p, lambda x: (x >= 0) & (x <= 1), "must lie in [0, 1]")


def normalized_residual(mass: Array, fallback: Array) -> Array:
    """`mass / sum(mass)` along the last axis, or `fallback` where the mass is zero.

    An empty residual is reached with probability zero, up to rounding; the target
    itself is then a safe thing to sample.
    """
    total = blockwise_sum(mass)[..., None]
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), fallback)


def _check(name: str, value: Option | None, is_allowed, message: str) -> None:
    if value is None or not is_concrete(value):
        return
    values = np.asarray(value)
    wrong = values[~is_allowed(values)]
    if wrong.size:
        raise ValueError(f"{name}: {message}, got {wrong.flat[0]}")


def _as_column(option: Option, logits: Array) -> Array:
    """An option as numbers that broadcast against `logits [..., V]`."""
    option = jnp.asarray(option, logits.dtype)
    missing = logits.ndim - option.ndim
    return option.reshape(*option.shape, *[1] * missing)


def _greedy(logits: Array) -> Array:
    best = jnp.argmax(logits, axis=-1)
    return jax.nn.one_hot(best, logits.shape[-1], dtype=logits.dtype)


def _keeps_all(top_k: Option, vocab_size: int) -> bool:
    return is_concrete(top_k) and np.min(np.asarray(top_k)) >= vocab_size


def _largest_top_k(top_k: Option, max_top_k: int | None) -> int:
    if max_top_k is not None:
        return max_top_k
    if not is_concrete(top_k):
        raise ValueError("max_top_k: needed where top_k is data, since it fixes shapes")
    return int(np.max(np.asarray(top_k)))


def _keep_top_k(logits: Array, top_k: Option, most: int) -> Array:
    """All but the `top_k` largest logits become -inf."""
    kept = jax.lax.top_k(logits, most)[1]
    rank = jax.lax.broadcasted_iota(jnp.int32, kept.shape, kept.ndim - 1)
    wanted = rank < _as_column(top_k, kept)
    flat, rows = kept.reshape(-1, most), logits.reshape(-1, logits.shape[-1])
    members = jnp.zeros(rows.shape, bool)
    members = members.at[jnp.arange(len(flat))[:, None], flat].set(
        wanted.reshape(flat.shape)
    )
    return jnp.where(members.reshape(logits.shape), logits, -jnp.inf)


def _keep_top_p(probs: Array, top_p: Array) -> Array:
    """Zero for all but the fewest likeliest tokens that reach the mass `top_p`."""
    order = jnp.argsort(-probs, axis=-1)
    ranked = jnp.take_along_axis(probs, order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    # Rounding must not drop tokens where all are wanted.
    keep = jnp.put_along_axis(
        jnp.zeros(probs.shape, bool),
        order,
        (before < top_p) | (top_p >= 1),
        -1,
        inplace=False,
    )
    return jnp.where(keep, probs, 0)
