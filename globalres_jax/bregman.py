"""Bregman decoding: the sparse distribution that is nearest to p.

With phi_a(x) = x^a / (a (a - 1)) (x log x at a = 1) and its divergence D, the primal
transform minimises D(p_hat, p) + cost k over all distributions on k tokens, the dual
one D(p, p_hat) + cost k. The support is always the k likeliest, and the minimum for
each k is convex in k. With s = a - 1,

    primal    p_hat^s = p^s + nu          a = 1 is top-k, a = 2 adds to all the same
    dual      p_hat = p + nu p_hat^(1-s)  (a > 1)

where nu makes the sum 1. In both log p_hat = log p + gain(log nu - s log p), and the
one unknown is taken to be what the token gains that gains most: the sum is linear in
it at a = 1 and a = 2, and nearly so elsewhere, so that Newton's method takes few steps.

Noarov, Mallick, Wang, Joshi, Sun, Xie, Yu and Dobriban: Foundations of Top-k Decoding
for Language Models, arXiv 2505.19371.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.sums import mass_beyond
from globalres_jax.validation import as_array, is_concrete, wrong_kind

_STEPS = 30
_INNER_STEPS = 12
#: Mass that is not missed: it keeps logarithms finite.
_NOTHING = 1e-20
_LOWEST = -60.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bregman:
    """A transform of what `top_k` keeps, in place of scaling it to 1.

    Numbers, or arrays [B] with one for each row of a batch; under `jit` they are data.
    As an option of `SpeculativeConfig` it has numbers.

    Attributes:
      alpha: which divergence: above 0, for the dual above 1. At 1 the transform scales;
        above 1 it gives unlikely tokens a larger share of what was cut off.
      token_cost: what each kept token costs, the lambda of the paper: the fewer tokens
        the surer the distribution is. `top_k` is then the most that are kept. None
        keeps `top_k` in every row, as 0 does.
      dual: whether p_hat is the second argument of the divergence.

    Raises:
      ValueError, TypeError: a value out of range, or no number.
    """

    alpha: Any = 1.5
    token_cost: Any = None
    dual: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self):
        if not isinstance(self.dual, bool):
            raise wrong_kind("dual", "True or False", self.dual)
        for name in ("alpha", "token_cost"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, as_array(value, name))
            if isinstance(value, str | bytes | dict | bool):
                raise wrong_kind(name, "a number, or one for each row", value)
        least, name = (1, "alpha of the dual") if self.dual else (0, "alpha")
        _check(name, self.alpha, lambda x: x > least, f"must be finite, above {least}")
        _check("token_cost", self.token_cost, lambda x: x >= 0, "must be 0 or more")

    def for_rows(self, batch: int) -> Bregman:
        """The same with arrays [B]; ValueError for another B."""

        def rows(name: str) -> Array | None:
            value = getattr(self, name)
            if value is None:
                return None
            array = as_array(value, name).astype(np.float32)
            if array.shape not in ((), (batch,)):
                raise ValueError(
                    f"{name}: expected a number or {batch}, one for each row, got "
                    f"shape {array.shape}"
                )
            # For numbers on the host no program is made.
            xp = jnp if isinstance(array, jax.Array) else np
            return jnp.asarray(xp.broadcast_to(array, (batch,)))

        return dataclasses.replace(
            self, alpha=rows("alpha"), token_cost=rows("token_cost")
        )

    def nearest(self, weights: Array, beyond: Array, top_k: Array) -> Array:
        """The transform of one row, for options that are numbers [].

        Args:
          weights: [K] logarithms of the K likeliest tokens' weights, descending; -inf
            and what float32 takes for 0 is never kept.
          beyond: [] weight of all other tokens.
          top_k: [] most tokens to keep, at most K.

        Returns:
          [K] probabilities, zero from the last kept token on. NaN where weights are.
        """
        total = jnp.sum(jnp.exp(weights)) + beyond
        row = _row(weights - jnp.log(total), beyond / total, self.alpha, self.dual)
        still = jax.lax.stop_gradient(row)
        most = jnp.clip(jnp.sum(still.p > 0), 1, top_k)
        size = most
        if self.token_cost is not None:
            size = jax.lax.cond(
                self.token_cost > 0,
                lambda: _cheapest(still, most, self.token_cost),
                lambda: most,
            )
        return _on(row, size, _most_gained(still, size))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Row:
    """What is asked of one row.

    Attributes:
      log_p: [K] descending.
      p: [K].
      left: [K] what the first 1, 2, ... leave out.
      s: [] alpha - 1.
      dual: whether it is.
    """

    log_p: Array
    p: Array
    left: Array
    s: Array
    dual: bool = dataclasses.field(metadata={"static": True})

    def gain(self, level: Array) -> Array:
        """log(p_hat / p) at `level`: log nu - s log p, less log s in the primal."""
        if self.dual:
            return _dual_gain(level, self.s)
        above = jnp.where(self.s > 0, self.s, 1)
        below = jnp.where(self.s < 0, self.s, -1)
        level_below = jnp.where(self.s > 0, -1, level)
        return jnp.where(
            self.s > 0,
            jnp.logaddexp(level + jnp.log(above), 0) / above,
            jnp.where(
                self.s < 0,
                jnp.log1p(below * jnp.exp(level_below)) / below,
                jnp.exp(level_below),
            ),
        )

    def level(self, gain: Array) -> Array:
        """The inverse of `gain`."""
        if self.dual:
            return self.s * gain + jnp.log(-jnp.expm1(-gain))
        size = jnp.abs(self.s)
        safe = jnp.where(size > 0, size, 1)
        share = jnp.where(size > 0, -jnp.expm1(-safe * gain) / safe, gain)
        return jnp.maximum(self.s, 0) * gain + jnp.log(share)

    def slope(self, level: Array, gain: Array) -> Array:
        """The derivative of `gain` by the level."""
        if self.dual:
            return 1 / (self.s + 1 / jnp.expm1(gain))
        return jnp.exp(level - self.s * gain)


def _row(log_p: Array, beyond: Array, alpha: Array, dual: bool) -> _Row:
    p = jnp.exp(log_p)
    # A CPU takes a subnormal number for 0, here and not there.
    p = jnp.where(p < jnp.finfo(p.dtype).tiny, 0, p)
    return _Row(
        jnp.where(p == 0, 0, log_p),
        p,
        mass_beyond(p)[1:] + beyond,
        jnp.asarray(alpha, p.dtype) - 1,
        dual,
    )


class _Found(NamedTuple):
    """A distribution on the first k tokens.

    Attributes:
      level: [K] of each token.
      p_hat: [K], zero beyond k.
      excess: [] its sum less 1.
      slopes: [K] the derivative of `p_hat` by what the token gains that gains most.
    """

    level: Array
    p_hat: Array
    excess: Array
    slopes: Array


@jax.jit  # traced once
def _gaining(row: _Row, size: Array, gained: Array) -> _Found:
    """The first `size` tokens once the one that gains most has `gained`."""
    kept = (jnp.arange(len(row.p)) < size) & ~(row.p == 0)
    # Up to alpha = 2 the likeliest gains most, beyond it the least likely.
    at = jnp.where(row.s <= 1, 0, size - 1)
    log_p, p = row.log_p[at], row.p[at]
    gain_at = jnp.logaddexp(jnp.log(gained) - log_p, 0)
    level_at = row.level(gain_at)
    level = jnp.where(kept, level_at + row.s * (log_p - row.log_p), level_at)
    gain = row.gain(level)
    p_hat = jnp.where(kept, jnp.exp(row.log_p + gain), 0)
    added = jnp.where(kept, row.p * jnp.expm1(gain), 0)
    slopes = p_hat * row.slope(level, gain)
    slopes = slopes / (row.slope(level_at, gain_at) * (p + gained))
    return _Found(level, p_hat, jnp.sum(added) - _left(row, size), slopes)


def _left(row: _Row, size: Array) -> Array:
    return jnp.maximum(row.left[size - 1], _NOTHING)


@jax.jit
def _most_gained(row: _Row, size: Array) -> Array:
    """The root []: what the token gains that gains most of the first `size`.

    It lies between an equal part of what is left and all of it.
    """
    left = _left(row, size)
    low, high, weight = left / size, left, jnp.clip(row.s, 0, 1)
    # At alpha = 1 it is in proportion to p, at alpha = 2 the same for all.
    share = row.p[0] / jnp.maximum(1 - left, row.p[0])
    start = jnp.clip(left ** (1 - weight) * low**weight * share ** (1 - weight), low)
    close = 4 * jnp.finfo(row.p.dtype).eps

    def unsettled(state) -> Array:
        index, _, _, _, change = state
        return (index < _STEPS) & (change > close)

    def improve(state):
        index, gained, low, high, _ = state
        found = _gaining(row, size, gained)
        low = jnp.where(found.excess < 0, gained, low)
        high = jnp.where(found.excess > 0, gained, high)
        following = gained - found.excess / jnp.sum(found.slopes)
        inside = (following >= low) & (following <= high)
        following = jnp.where(inside, following, jnp.sqrt(low) * jnp.sqrt(high))
        return index + 1, following, low, high, jnp.abs(following / gained - 1)

    state = jnp.int32(0), start, low, high, jnp.full_like(start, jnp.inf)
    return jax.lax.while_loop(unsettled, improve, state)[1]


def _on(row: _Row, size: Array, gained: Array) -> Array:
    """p_hat [K]; differentiable, of a `gained` that is constant."""
    found = _gaining(row, size, gained)
    # One more step of Newton's, along the tangent: it has the derivative of the root.
    slopes = jax.lax.stop_gradient(found.slopes)
    p_hat = found.p_hat - slopes * (found.excess / jnp.sum(slopes))
    kept = jnp.arange(len(row.p)) < size
    p_hat = jnp.where(row.left[size - 1] > 0, p_hat, row.p)
    p_hat = jnp.where(kept, jnp.maximum(p_hat, 0), 0)
    return p_hat / jnp.sum(p_hat)


def _cost(row: _Row, size: Array) -> Array:
    """The least divergence on `size` tokens, less that of p from nothing."""
    found, alpha = _gaining(row, size, _most_gained(row, size)), row.s + 1
    nu = jnp.exp(found.level[0] + row.s * row.log_p[0])
    power = jnp.sum(jnp.where(found.p_hat > 0, found.p_hat, 0) ** alpha) / alpha
    # In the primal this is nu / s, and so sum(p_hat (p_hat^s - p^s) / s).
    return (nu - power) / row.s if row.dual else nu - power


def _cheapest(row: _Row, most: Array, token_cost: Array) -> Array:
    """The least k up to `most` at which one token more is not worth its cost."""

    def undecided(bounds: tuple[Array, Array]) -> Array:
        return bounds[0] < bounds[1]

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        now, more = jax.vmap(lambda k: _cost(row, k))(jnp.stack([middle, middle + 1]))
        pays = now - more > token_cost
        return jnp.where(pays, middle + 1, low), jnp.where(pays, high, middle)

    return jax.lax.while_loop(undecided, halve, (jnp.ones_like(most), most))[0]


def _dual_gain(level: Array, s: Array) -> Array:
    """The root t >= 0 of s t + log(1 - exp(-t)) = level.

    The left side is concave in t, and the start is not beyond the root.
    """

    def step(_, t: Array) -> Array:
        return t + (level - s * t - jnp.log(-jnp.expm1(-t))) / (s + 1 / jnp.expm1(t))

    # What a token gains below this is lost in its last digit.
    level = jnp.maximum(level, _LOWEST)
    start = jnp.logaddexp(level, 0) / jnp.maximum(s, 1)
    still = jax.lax.stop_gradient
    t = jax.lax.fori_loop(0, _INNER_STEPS, lambda i, t: still(step(i, t)), still(start))
    slope = s + 1 / jnp.expm1(t)
    return t + (level - still(s * t + jnp.log(-jnp.expm1(-t)))) / still(slope)


def _check(name: str, value: Any, is_allowed: Callable, message: str) -> None:
    numbers = int | float | np.ndarray | np.generic | jax.Array
    if not isinstance(value, numbers) or not is_concrete(value):
        return  # JAX rebuilds pytrees with placeholders for leaves
    try:
        values = np.asarray(value).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise wrong_kind(name, "a number, or one for each row", value) from error
    wrong = values[~(is_allowed(values) & np.isfinite(values))]
    if wrong.size:
        raise ValueError(f"{name}: {message}, got {wrong.flat[0]}")
