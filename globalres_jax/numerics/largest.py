"""The k largest of a vocabulary, in order, without sorting it.

At least k blocks have a maximum at or above the k-th largest maximum, so that number
bounds the k-th largest value from below, and few other values reach it. Halving finds
such a bound among the maxima; only what reaches it is sorted. Accelerators sort fast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.members import count, members, to_words
from globalres_jax.numerics.order import between, from_order, to_order
from globalres_jax.numerics.rows import by_platform, in_rows

_BLOCKS = (64, 32, 16)
_FOLDS_PER_VALUE = 16


def largest(values: Array, k: int) -> tuple[Array, Array]:
    """The `k` largest of `values [V]`, descending, and their places.

    Equal values come by place, lowest first. Zeros of both signs are equal, and so may
    be subnormal numbers; NaN is largest.

    Args:
      values: [V] of a floating type.
      k: at most V.

    Returns:
      values [k] (differentiable) and places [k] int32.
    """
    find = in_rows(lambda row: places_of_largest(row, k))
    found = find(jax.lax.stop_gradient(values))
    return values[found], found


def places_of_largest(values: Array, k: int) -> Array:
    """[k] int32: as `largest`, for callers that see to their rows themselves."""

    def by_sorting(values: Array) -> Array:
        return jax.lax.top_k(_canonical(values), k)[1]

    def by_bound(values: Array) -> Array:
        return _by_bound(values, k, by_sorting)

    return by_platform(values, cpu=by_bound, default=by_sorting)


def nearly_largest(values: Array, k: int) -> tuple[Array, Array]:
    """`k` of the largest of `values [..., V]`, descending, and their places.

    For drafts, where any tokens will do as long as those that are drawn from are those
    that are verified: of values whose places are equal modulo a number of 16 k or more,
    only the largest is looked at. So the i-th largest is missing with a probability of
    about i / 16 k, the largest never, and there is little to compute and to compile.
    """
    return by_platform(
        values,
        tpu=lambda values: tuple(jax.lax.approx_max_k(values, k)),
        default=lambda values: _of_folds(values, k),
    )


def _of_folds(values: Array, k: int) -> tuple[Array, Array]:
    size = values.shape[-1]
    width = 1 << (_FOLDS_PER_VALUE * k - 1).bit_length()
    depth = -(-size // width)
    if depth <= 1:
        return tuple(jax.lax.top_k(values, k))
    # The vocabulary first: so lie the logits that a CPU computes of a few rows.
    columns = jnp.moveaxis(values, -1, 0)
    best, layer = columns[:width], jnp.zeros((width, *values.shape[:-1]), jnp.int32)
    for i in range(1, depth):
        other = columns[i * width : (i + 1) * width]
        missing = [(0, width - len(other))] + [(0, 0)] * (values.ndim - 1)
        other = jnp.pad(other, missing, constant_values=-jnp.inf)
        layer = jnp.where(other > best, i, layer)
        best = jnp.maximum(best, other)
    best, place = jax.lax.top_k(jnp.moveaxis(best, 0, -1), k)
    layer = jnp.take_along_axis(jnp.moveaxis(layer, 0, -1), place, axis=-1)
    return best, layer * width + place


def is_quick(vocab_size: int, k: int) -> bool:
    """Whether a CPU finds the `k` largest without sorting all."""
    return _block_size(vocab_size, k) is not None


def _by_bound(values: Array, k: int, by_sorting) -> Array:
    """[k] places of the largest, from those that reach a bound."""
    size = _block_size(len(values), k)
    if size is None:
        return by_sorting(values)
    bound = _lower_bound(values, k, size)
    slots = 2 * k + 32
    reaching = to_words(~(values < bound))
    few = count(reaching) <= slots

    def sort(first: Array, second: Array) -> Array:
        found = members(first, second, slots)
        held = jnp.arange(slots) < count(first) + count(second)
        shown = jnp.where(held, _canonical(values[found]), -jnp.inf)
        return found[jax.lax.top_k(shown, k)[1]]

    def with_ties() -> Array:
        # Of many that equal the bound, the first are enough.
        above = to_words(~(values <= bound))
        return jax.lax.cond(
            count(above) <= slots,
            lambda: sort(above, reaching & ~above),
            lambda: by_sorting(values),
        )

    nothing = jnp.zeros(1, reaching.dtype)
    return jax.lax.cond(few, lambda: sort(reaching, nothing), with_ties)


def _block_size(vocab_size: int, k: int) -> int | None:
    """The largest that leaves enough blocks; None where sorting is as fast."""
    return next((b for b in _BLOCKS if vocab_size >= 3 * k * b), None)


def _lower_bound(values: Array, k: int, size: int) -> Array:
    """A number [] that the maxima of `k` blocks reach, and of few more."""
    padded = jnp.pad(values, (0, -len(values) % size), constant_values=-jnp.inf)
    maxima = to_order(_canonical(jnp.max(padded.reshape(-1, size), axis=1)))

    def unsettled(state):
        low, high, reach = state
        return (high - low > 1) & (reach > k + k // 8)

    def halve(state):
        low, high, reach = state
        middle = between(low, high)
        found = jnp.sum(maxima >= middle, dtype=jnp.int32)
        enough = found >= k
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, found, reach),
        )

    # The largest key is that of a NaN, which no float exceeds.
    start = (jnp.min(maxima), jnp.max(maxima) + 1, jnp.int32(len(maxima)))
    return from_order(jax.lax.while_loop(unsettled, halve, start)[0])


def _canonical(values: Array) -> Array:
    """One zero and one NaN, for sorts that tell their signs apart."""
    values = jnp.where(values == 0, 0, values)
    return jnp.where(jnp.isnan(values), jnp.nan, values)
