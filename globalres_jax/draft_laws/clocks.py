"""Sampling without replacement as a race of exponential clocks.

Token i rings at an exponential time of rate q_i; the first n that ring are the drafts.
With g = exp(-q tau), f = 1 - g, e = exp(-u) and r = f / g, the n-th rings at tau with
density, weighted by exp(-sum u),

    [z^n] sum_i z q_i g_i e_i prod_{j != i} (g_j + z f_j e_j)
        = [z^n] P(z) sum_i z q_i e_i / (1 + z r_i e_i),  P = prod_j (g_j + z f_j e_j)

The few likeliest tokens are multiplied out one by one. Of all others log P and the sum
are power series in z, whose coefficients are sums of (r e)^l over tokens: products of a
matrix over the points u with one over the times. Their terms alternate, but what they
cancel is no larger than what the likeliest tokens contribute, so that rounding stays
relative to the whole.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond, product

#: So many tokens more than drafts are multiplied out, and more for many drafts: the
#: odds of the others, to the power of n - 1, stay below the exponential of this.
_BEYOND_DRAFTS = 4
_LARGEST_LOG_ODDS = 60
#: Rates relative to that of the n-th ring, beyond which a token has rung for certain.
_CERTAIN = 1e30
#: Chance that the n-th ring is before the first node or after the last one, and nodes.
_CUT = {jnp.dtype("float32"): 3e-8, jnp.dtype("float64"): 1e-14}
_NODES = {jnp.dtype("float32"): 40, jnp.dtype("float64"): 120}


class Clocks(NamedTuple):
    """The clocks of one law, in units of the mass beyond its n - 1 likeliest tokens.

    Attributes:
      rates: [k] of the tokens.
      heavy: [m] the likeliest tokens, in order; at least n - 1.
      lacking: [] bool, fewer than n tokens can ring: rates mean nothing.
      nodes: [U] times at which integrals over that of the n-th ring are summed.
      weights: [U] of the nodes.
    """

    rates: Array
    heavy: Array
    lacking: Array
    nodes: Array
    weights: Array


def clocks(q: Array, num_drafts: int) -> Clocks:
    """The clocks of n draws without replacement from `q [k]`, n at most k.

    The times are those of a trapezoid rule in the logarithm, from where the n-th has
    hardly rung to where it has rung almost surely. With R_m the mass beyond the n - m
    likeliest tokens, of which m must ring, the chance that the n-th has rung at tau is
    at most (R_m tau)^m / m!, for every m; and that it has not, at most that of fewer
    than n events of a Poisson process of rate R_1.
    """
    known = jax.lax.stop_gradient(q)
    cut = _CUT[q.dtype]
    last = _last_event(num_drafts, cut)
    # The heaviest of the others rings at 1 / (m - n + 2) or less.
    more = math.ceil(last * (num_drafts - 1) / _LARGEST_LOG_ODDS) - 2
    count = min(num_drafts + max(more, _BEYOND_DRAFTS), q.shape[0])
    mass, heavy = jax.lax.top_k(known, count)
    rest = blockwise_sum(known.at[heavy[: num_drafts - 1]].set(0))
    lacking = rest <= 0
    unit = jnp.where(lacking, 1, rest)

    beyond = unit + jnp.cumsum(jnp.append(0, mass[: num_drafts - 1][::-1]))
    orders = range(1, num_drafts + 1)
    first = [(math.log(cut) + math.lgamma(m + 1)) / m for m in orders]
    ratio = jnp.maximum(unit / beyond, cut)
    low = jnp.max(jnp.asarray(first, q.dtype) + jnp.log(ratio))
    step = (math.log(last) - low) / (_NODES[q.dtype] - 1)
    nodes = jnp.exp(low + step * jnp.arange(_NODES[q.dtype], dtype=q.dtype))
    rates = jnp.minimum(q / unit, _CERTAIN)
    return Clocks(rates, heavy, lacking, nodes, step * nodes)


def laplace(q: Array, num_drafts: int, survive: Array) -> tuple[Array, Array]:
    """L [S] and E[N_i Z] [S, k] at the points u = -log(survive [S, k]).

    Where fewer than n tokens have probability above zero, all of them are drafted.

    Args:
      q: [k] probabilities.
      num_drafts: n, at most k.
      survive: [S, k] e.
    """
    rates, heavy, lacking, nodes, weights = clocks(q, num_drafts)
    first = heavy[: num_drafts - 1]
    drafted = (q[first] > 0)[None]

    def value_at(survive: Array) -> Array:
        light = rates.at[heavy].set(0)
        state = _light_series(light, nodes, survive, num_drafts)
        ring = _multiplied(state, rates[heavy], nodes, survive[:, heavy].T)
        everything = jnp.prod(jnp.where(drafted, survive[:, first], 1), axis=1)
        return jnp.where(lacking, everything, product(ring, weights))

    # L(0) = 1: dividing by it takes away most of the error of the grid in tau.
    points = jnp.concatenate([survive, jnp.ones((1, len(q)), q.dtype)])
    value, back = jax.vjp(value_at, points)
    mean = back(jnp.ones_like(value))[0] * points
    # Where hardly anything survives, rounding decides.
    value, mean = (jnp.where(x < 0, 0, x) / value[-1] for x in (value, mean))
    return value[:-1], mean[:-1]


def escape(q: Array, num_drafts: int) -> Array:
    """[k + 1] 1 - Q(H) for the prefixes H of `q [k]`.

    Q(H) is the chance that the n-th token of H rings before any outside: token by
    token, the product of the module's docstring with e = 1 on H.
    """
    rates, _, lacking, nodes, weights = clocks(q, num_drafts)
    start = jnp.zeros((2, num_drafts, 1, len(nodes)), q.dtype).at[0, 0].set(1)

    def add(state: Array, rate: Array) -> tuple[Array, Array]:
        state = _with_token(state, rate, nodes, jnp.ones((1, 1), q.dtype))
        return state, state[1, -1, 0]

    _, rings = jax.lax.scan(add, start, rates)
    outside = mass_beyond(rates)[1:]
    inside = product(rings * jnp.exp(-outside[:, None] * nodes[None]), weights)
    inside = inside / jnp.where(lacking, 1, inside[-1])
    # Where all tokens are drafted, a set must hold them all.
    inside = jnp.where(lacking, jnp.where(outside > 0, 0, 1), inside)
    return jnp.clip(1 - jnp.concatenate([jnp.zeros(1, q.dtype), inside]), 0, 1)


def rough_counts(q: Array, num_drafts: int) -> Array:
    """[k] about the chance that each token is drafted: by when n have rung on average.

    Zero for tokens that cannot be drafted, and for no others.
    """
    rates, _, lacking, nodes, _ = clocks(q, num_drafts)
    rung = -jnp.expm1(-nodes[:, None] * rates[None])
    when = jnp.argmax(jnp.sum(rung, axis=1) >= num_drafts)
    chance = jnp.maximum(rung[when], jnp.where(q > 0, jnp.finfo(q.dtype).tiny, 0))
    return jnp.where(lacking, jnp.where(q > 0, 1, 0).astype(q.dtype), chance)


@functools.cache
def _last_event(num_drafts: int, chance: float) -> float:
    """Time from which fewer than n events of rate 1 have `chance` or less."""
    time = float(num_drafts)
    while True:
        terms = (
            math.exp(-time + m * math.log(time) - math.lgamma(m + 1))
            for m in range(num_drafts)
        )
        if sum(terms) <= chance:
            return time
        time *= 1.05


def _light_series(rates: Array, nodes: Array, survive: Array, num_drafts: int) -> Array:
    """P and the density of the tokens of `rates [k]`: [2, n, S, U].

    The coefficients of z^0 .. z^(n-1), and of z^1 .. z^n.
    """
    odds = jnp.expm1(rates[:, None] * nodes[None])
    orders = range(num_drafts)
    left = jnp.stack([survive**m for m in orders])
    right = jnp.stack([odds**m for m in orders])
    powers = product(left, right)
    marks = product(left * survive[None], right * rates[None, :, None])

    silent = jnp.exp(-blockwise_sum(rates) * nodes)
    plain = [jnp.broadcast_to(silent[None], powers.shape[1:])]
    for m in orders[1:]:
        # Newton's identities: m P_m = sum_l (-1)^(l-1) p_l P_(m-l).
        plain.append(_alternating(powers[1:], plain, m - 1) / m)
    marked = [_alternating(marks, plain, m) for m in orders]
    return jnp.stack([*plain, *marked]).reshape(2, *powers.shape)


def _alternating(left: Array, right: list[Array], order: int) -> Array:
    """sum_l (-1)^l left_l right_(order - l)."""
    return sum(left[m] * right[order - m] * (-1) ** m for m in range(order + 1))


def _multiplied(state: Array, rates: Array, nodes: Array, survive: Array) -> Array:
    """[S, U] density of the n-th ring, after the tokens of `rates [m]` are in, too."""

    def add(state: Array, token: tuple) -> tuple[Array, None]:
        rate, survive = token
        return _with_token(state, rate, nodes, survive[:, None]), None

    state, _ = jax.lax.scan(add, state, (rates, survive))
    return state[1, -1]


def _with_token(state: Array, rate: Array, nodes: Array, survive: Array) -> Array:
    """P and the density with one token more multiplied in.

    Args:
      state: [2, n, S, U], coefficients of z^0 .. z^(n-1) and of z^1 .. z^n.
      rate: [].
      nodes: [U].
      survive: [S, 1] its e.
    """
    silent = jnp.exp(-rate * nodes)[None, None, None]
    rung = -jnp.expm1(-rate * nodes)[None, None, None] * survive[None, None]
    shifted = jnp.pad(state, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    ringing = rate * silent[0] * survive[None] * state[0]
    return (silent * state + rung * shifted).at[1].add(ringing)
