"""The fewest likeliest tokens that hold a share of the mass, without a sort.

The mass at or above a threshold falls as the threshold rises, so halving finds the
threshold where it still suffices. Each step is one pass over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.members import member, to_words
from globalres_jax.numerics.order import from_order, to_order
from globalres_jax.numerics.rows import in_rows
from globalres_jax.numerics.sums import blockwise_sum

# XLA vectorises the sum of 32 slices or more, into fewer than 4,096 numbers.
_LANES, _FEWEST_SLICES, _MOST_GROUPS = 64, 32, 48


class Threshold(NamedTuple):
    """What is kept: larger values, and those equal up to the place `last`.

    Attributes:
      value: [].
      last: [] int32.
    """

    value: Array
    last: Array

    def keeps(self, values: Array) -> Array:
        """[V] bool, which of `values [V]` are kept."""
        places = jnp.arange(values.shape[-1], dtype=jnp.int32)
        ties = (values == self.value) & (places <= self.last)
        return (values > self.value) | ties


class _Bounds(NamedTuple):
    """The mass at `low` and above suffices, that at `high` and above does not."""

    low: Array
    high: Array
    mass_low: Array
    mass_high: Array

    def middle(self, wanted: Array) -> Array:
        """Between the bounds, at a quarter to three quarters of the way.

        The more of the mass between them is wanted, the lower.
        """
        between = self.mass_low - self.mass_high
        share = jnp.where(between > 0, (wanted - self.mass_high) / between, 0.5)
        width = self.high - self.low
        step = (width * (0.25 + 0.5 * share)).astype(width.dtype)
        return self.high - jnp.clip(step, 1, width - 1)

    def moved(self, middle: Array, mass: Array, wanted: Array) -> _Bounds:
        """The bounds once the mass at `middle` and above is known."""
        enough = mass >= wanted
        return _Bounds(
            jnp.where(enough, middle, self.low),
            jnp.where(enough, self.high, middle),
            jnp.where(enough, mass, self.mass_low),
            jnp.where(enough, self.mass_high, mass),
        )


def reaching(mass: Array, share: Array) -> Threshold:
    """The threshold of the fewest largest `mass [V] >= 0` that hold `share [] > 0`.

    Of equal masses those of the lowest places are kept. Sums are rounded so that they
    decide as exact ones would, but for the last digits; a share of 1 may leave out
    what is lost in them. Not differentiable.
    """
    search = in_rows(_reaching)
    return search(jax.lax.stop_gradient(mass), jnp.asarray(share, mass.dtype))


def _reaching(mass: Array, share: Array) -> Threshold:
    groups = _folded(mass)
    total = _mass_from(groups, jnp.zeros((), mass.dtype))
    wanted = share * total
    # Tokens below this have half of what may be left out, whichever they are.
    low = to_order(jnp.maximum(total - wanted, 0) / (2 * len(mass)))
    high = to_order(_fold(groups, jnp.maximum, lambda x: x).max()) + 1
    bounds = _Bounds(low, high, total, jnp.zeros_like(total))
    bounds = _narrowed(groups, wanted, bounds)
    value, above = from_order(bounds.low), bounds.mass_high
    needed = jnp.clip(jnp.ceil((wanted - above) / value), 1, len(mass))
    last = jax.lax.cond(
        bounds.mass_low - above > (needed + 0.5) * value,
        lambda: member(to_words(mass == value), needed.astype(jnp.int32) - 1),
        lambda: jnp.full((), len(mass) - 1, jnp.int32),
    )
    return Threshold(value, last)


def _narrowed(groups: Array, wanted: Array, bounds: _Bounds) -> _Bounds:
    """The bounds next to each other: a token's mass, and what is above it."""

    def narrow(bounds: _Bounds) -> _Bounds:
        middle = bounds.middle(wanted)
        mass = _mass_from(groups, from_order(middle))
        parted = (mass != bounds.mass_low) & (mass != bounds.mass_high)
        bounds = bounds.moved(middle, mass, wanted)
        several = bounds.mass_low - bounds.mass_high > 1.5 * from_order(bounds.low)
        # With few tokens left, or many equal ones, most steps would part none.
        return jax.lax.cond(
            parted & several, lambda: bounds, lambda: _drawn_in(groups, bounds)
        )

    return jax.lax.while_loop(lambda x: x.high - x.low > 1, narrow, bounds)


def _drawn_in(groups: Array, bounds: _Bounds) -> _Bounds:
    """The bounds moved to the least and the largest token between them."""
    low, high = from_order(bounds.low), from_order(bounds.high)
    least = _fold(groups, jnp.minimum, lambda x: jnp.where(x >= low, x, jnp.inf)).min()
    most = _fold(groups, jnp.maximum, lambda x: jnp.where(x < high, x, 0)).max()
    # At least one step, should rounding hide what there is.
    low = jnp.maximum(bounds.low, to_order(jnp.minimum(least, high)))
    high = jnp.clip(to_order(most) + 1, low + 1, bounds.high)
    return bounds._replace(low=low, high=high)


def _mass_from(groups: Array, threshold: Array) -> Array:
    """[] the mass of all values from the threshold on; falls as it rises."""
    sums = _fold(groups, jnp.add, lambda x: jnp.where(x >= threshold, x, 0))
    return blockwise_sum(sums.reshape(-1))


def _folded(values: Array) -> Array:
    """[groups, slices, 64], padded with zeros; the slices are a power of two."""
    slices = _FEWEST_SLICES
    while len(values) > _MOST_GROUPS * slices * _LANES:
        slices *= 2
    padding = -len(values) % (slices * _LANES)
    return jnp.pad(values, (0, padding)).reshape(-1, slices, _LANES)


def _fold(groups: Array, join: Callable, term: Callable) -> Array:
    """[groups, 64] the terms of the slices, joined pairwise.

    A CPU adds slices in vectors; along one row it would wait for each addition.
    """
    terms = [term(groups[:, i]) for i in range(groups.shape[1])]
    while len(terms) > 1:
        terms = [join(a, b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
    # Fused with a further reduction, this would be as slow.
    return jax.lax.optimization_barrier(terms[0])
