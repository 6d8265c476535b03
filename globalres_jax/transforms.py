"""Logits to probabilities: temperature, then top-k, then top-p, then min-p.

Or temperature, then top-k by a Bregman transform.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.bregman import Bregman
from globalres_jax.numerics.largest import is_quick, largest
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.rows import by_platform, map_rows
from globalres_jax.numerics.sums import blockwise_sum, running_sum
from globalres_jax.numerics.thresholds import Threshold, reaching
from globalres_jax.validation import is_concrete

Option = float | int | Array


def probabilities(
    logits: Array,
    temperature: Option = 1.0,
    top_k: Option | None = None,
    top_p: Option | None = None,
    min_p: Option | None = None,
    max_top_k: int | None = None,
    bregman: Bregman | None = None,
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
      bregman: how what `top_k` keeps becomes a distribution, and how many tokens that
        are; in place of `top_p` and `min_p`.

    Returns:
      [..., V] float32 (float64 for float64 logits), each row summing to 1. A row
      with infinite logits has its mass on them. A row with a NaN, or of -inf alone,
      sums to NaN. Which tokens the filters keep is constant to derivatives.

    Raises:
      ValueError: an option out of range.
    """
    check_filters(temperature, top_k, top_p, min_p, bregman)
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocab_size = logits.shape[-1]
    rows = logits.reshape(-1, vocab_size)
    if is_concrete(temperature) and np.all(np.asarray(temperature) == 0):
        return map_rows(_greedy, rows).reshape(logits.shape)
    if top_k is None or (bregman is None and _keeps_all(top_k, vocab_size)):
        top_k, most = None, vocab_size
    else:
        most = min(_largest_top_k(top_k, max_top_k), vocab_size)
    options = (
        _per_row(safe_temperature(temperature, logits.dtype), logits),
        _per_row(top_k, logits, jnp.int32),
        _per_row(top_p, logits),
        _per_row(min_p, logits),
        _options_per_row(bregman, logits),
    )
    function = functools.partial(_filtered, most=most)
    return map_rows(function, rows, *options).reshape(logits.shape)


def check_filters(
    temperature: Option,
    top_k: Option | None,
    top_p: Option | None,
    min_p: Option | None,
    bregman: Bregman | None = None,
    draft_temperature: Option | None = None,
) -> None:
    """Raises ValueError naming the sampling option that is out of range."""
    check_option("temperature", temperature, lambda x: x >= 0, "must be 0 or more")
    check_option("top_k", top_k, lambda x: x >= 1, "must be at least 1")
    check_option("top_p", top_p, lambda x: (x > 0) & (x <= 1), "must lie in (0, 1]")
    check_option("min_p", min_p, lambda x: (x >= 0) & (x <= 1), "must lie in [0, 1]")
    check_option(
        "draft_temperature", draft_temperature, lambda x: x > 0, "must be above 0"
    )
    if bregman is None:
        return
    if top_k is None:
        raise ValueError("bregman: needs top_k, the most tokens that it may keep")
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None:
            raise ValueError(
                f"{name}: not together with bregman, whose token_cost says how many "
                "tokens are kept"
            )


def nearest_among(
    few: Array,
    whole: Array,
    temperature: Option,
    top_k: Option,
    bregman: Bregman,
) -> Array:
    """The Bregman transform of rows whose likeliest tokens have been found.

    Args:
      few: [..., k] logits of the likeliest tokens, descending.
      whole: [..., V] of all.
      temperature: a number, or one for each row.
      top_k: likewise; it may exceed k.
      bregman: likewise.

    Returns:
      [..., k], each row summing to 1.
    """

    def row(few, whole, temperature, top_k, bregman) -> Array:
        return _nearest(few, whole, temperature, top_k, bregman, None)

    whole = whole.astype(jnp.promote_types(whole.dtype, jnp.float32))
    few = few.astype(whole.dtype)
    options = (
        _per_row(safe_temperature(temperature, few.dtype), few),
        _per_row(top_k, few, jnp.int32),
        _options_per_row(bregman, few),
    )
    rows = (x.reshape(-1, x.shape[-1]) for x in (few, whole))
    return map_rows(row, *rows, *options).reshape(few.shape)


def normalized_residual(mass: Array, fallback: Array) -> Array:
    """`mass / sum(mass)` along the last axis, or `fallback` where the mass is zero.

    An empty residual is reached with probability zero, up to rounding; the target
    itself is then a safe thing to sample.
    """
    total = blockwise_sum(mass)[..., None]
    return jnp.where(total > 0, quotient(mass, total), fallback)


def check_option(name: str, value: Option | None, is_allowed, message: str) -> None:
    """ValueError unless `is_allowed` says so of a number, or of all of several."""
    if value is None or not is_concrete(value):
        return
    values = np.asarray(value)
    wrong = values[~is_allowed(values)]
    if wrong.size:
        raise ValueError(f"{name}: {message}, got {wrong.flat[0]}")


def _per_row(option: Option | None, logits: Array, dtype=None) -> Array | None:
    """An option as [R], a number for each row of `logits [..., V]`."""
    if option is None:
        return None
    option = jnp.asarray(option, dtype or logits.dtype)
    missing = logits.ndim - 1 - option.ndim
    column = option.reshape(*option.shape, *[1] * missing)
    return jnp.broadcast_to(column, logits.shape[:-1]).reshape(-1)


def _options_per_row(bregman: Bregman | None, logits: Array) -> Bregman | None:
    return jax.tree.map(lambda option: _per_row(option, logits), bregman)


def safe_temperature(temperature: Option, dtype) -> Option:
    """Temperatures that a CPU does not take for 0, as it does subnormal numbers.

    Nor is one infinite: what cannot be drawn stays so at any temperature.
    """
    limits = jnp.finfo(dtype)
    # Its inverse, too, must be no subnormal number.
    hottest = float(limits.max) / 16
    if not is_concrete(temperature):
        return jnp.minimum(temperature, hottest)
    values = np.asarray(temperature, np.float64)
    return np.where(values > 0, np.clip(values, limits.tiny, hottest), 0)


def _greedy(row: Array) -> Array:
    """All mass on the first largest logit of `row [V]`."""
    places = jnp.arange(len(row), dtype=jnp.int32)
    best = jnp.max(row)
    first = jnp.min(jnp.where(row == best, places, len(row)))
    return jnp.where(jnp.isnan(best), jnp.nan, (places == first).astype(row.dtype))


def _keeps_all(top_k: Option, vocab_size: int) -> bool:
    return is_concrete(top_k) and np.min(np.asarray(top_k)) >= vocab_size


def _largest_top_k(top_k: Option, max_top_k: int | None) -> int:
    if max_top_k is not None:
        return max_top_k
    if not is_concrete(top_k):
        raise ValueError("max_top_k: needed where top_k is data, since it fixes shapes")
    return int(np.max(np.asarray(top_k)))


def _filtered(
    row: Array,
    temperature: Array,
    top_k: Array | None,
    top_p: Array | None,
    min_p: Array | None,
    bregman: Bregman | None,
    most: int,
) -> Array:
    """The distribution of `row [V]`; `top_k` is at most `most`."""
    if bregman is not None:
        values, tokens = largest(row, most)
        kept = Threshold(*jax.lax.stop_gradient((values[-1], tokens[-1]))).keeps(row)
        probs = _nearest(values, row, temperature, top_k, bregman, kept)
        return jnp.zeros_like(row).at[tokens].set(probs, unique_indices=True)

    def among_all(row: Array) -> Array:
        weights = _weights(row, temperature)
        if top_k is not None:
            values, tokens = largest(jax.lax.stop_gradient(row), most)
            at = jnp.minimum(top_k, most) - 1
            kept = Threshold(values[at], tokens[at]).keeps(row)
            weights = jnp.where(kept, weights, 0)
        if top_p is not None:
            kept = reaching(weights, top_p).keeps(weights)
            # Rounding must not drop tokens where all are wanted.
            weights = jnp.where(kept | (top_p >= 1), weights, 0)
        return _normalized(weights, min_p)

    def among_few(row: Array) -> Array:
        values, tokens = largest(row, most)
        weights = _weights(values, temperature)
        weights = jnp.where(jnp.arange(most) < top_k, weights, 0)
        if top_p is not None:
            reached = running_sum(weights)
            before = jnp.concatenate([jnp.zeros(1, row.dtype), reached[:-1]])
            kept = (before < top_p * reached[-1]) | (top_p >= 1)
            weights = jnp.where(kept, weights, 0)
        probs = _normalized(weights, min_p)
        return jnp.zeros_like(row).at[tokens].set(probs, unique_indices=True)

    if top_k is None or not is_quick(len(row), most):
        return among_all(row)
    return by_platform(row, cpu=among_few, default=among_all)


def _nearest(
    few: Array,
    row: Array,
    temperature: Array,
    top_k: Array,
    bregman: Bregman,
    kept: Array | None,
) -> Array:
    """The Bregman transform [k] of the likeliest tokens' logits `few [k]`.

    `kept [V]` says which of `row [V]` they are; what is beyond them is then summed, and
    no difference.
    """

    def warm() -> Array:
        best = jax.lax.stop_gradient(few[0])
        weights, all_weights = (_below(x, best, temperature) for x in (few, row))
        all_weights = jnp.exp(all_weights)
        if kept is None:
            beyond = blockwise_sum(all_weights) - jnp.sum(jnp.exp(weights))
        else:
            beyond = blockwise_sum(jnp.where(kept, 0, all_weights))
        return bregman.nearest(weights, jnp.maximum(beyond, 0), top_k)

    return jax.lax.cond(temperature > 0, warm, lambda: _greedy(few))


def _weights(logits: Array, temperature: Array) -> Array:
    """`exp((logits - best) / temperature)`: the largest of `logits [n]` weighs 1."""
    best = jax.lax.stop_gradient(jnp.max(logits))

    def warm() -> Array:
        return jnp.exp(_below(logits, best, temperature))

    return jax.lax.cond(temperature > 0, warm, lambda: _greedy(logits))


def _below(logits: Array, best: Array, temperature: Array) -> Array:
    """`(logits - best) / temperature`, of infinite numbers, too."""
    # Of two infinite numbers the difference is none.
    finite = jnp.finfo(logits.dtype).max
    below = jnp.minimum(logits, finite) - jnp.minimum(best, finite)
    # A CPU takes a subnormal number for 0 in a quotient.
    return below / jnp.maximum(temperature, jnp.finfo(logits.dtype).tiny)


def _normalized(weights: Array, min_p: Array | None) -> Array:
    """`weights [n]`, of which the largest is 1, as a distribution."""
    if min_p is not None:
        weights = jnp.where(weights >= min_p, weights, 0)
    return weights / blockwise_sum(weights)
