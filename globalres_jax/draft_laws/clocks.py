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

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond, product

#: So many tokens more than drafts are multiplied out.
_BEYOND_DRAFTS = 4
#: Rates relative to that of the n-th ring, beyond which a token has rung for certain.
_CERTAIN = 1e30
#: Chance that the n-th ring is before the first node or after the last one, and nodes.
_CUT = {jnp.dtype("float32"): 3e-8, jnp.dtype("float64"): 1e-14}
_NODES = {jnp.dtype("float32"): 40, jnp.dtype("float64"): 120}


def laplace(q: Array, num_drafts: int, survive: Array) -> tuple[Array, Array]:
    """L [S] and E[N_i Z] [S, k] at the points u = -log(survive [S, k]).

    Where fewer than n tokens have probability above zero, all of them are drafted.

    Args:
      q: [k] probabilities.
      num_drafts: n, at most k.
      survive: [S, k] e.
    """
    rates, rest = _relative_rates(q, num_drafts)
    nodes, weights = _times(q, num_drafts)
    count = min(num_drafts + _BEYOND_DRAFTS, q.shape[0])
    heavy = jax.lax.top_k(q, count)[1]
    drafted = jnp.where(q > 0, 1, 0)[heavy[: num_drafts - 1]] > 0

    def value_at(survive: Array) -> Array:
        light = rates.at[heavy].set(0)
        plain, marked = _light_series(light, nodes, survive, num_drafts)
        likeliest = survive[:, heavy].T
        ring = _multiplied(plain, marked, rates[heavy], nodes, likeliest)
        everything = jnp.where(drafted[:, None], likeliest[: num_drafts - 1], 1)
        return jnp.where(rest > 0, product(ring, weights), jnp.prod(everything, axis=0))

    # L(0) = 1: dividing by it takes away most of the error of the grid in tau.
    points = jnp.concatenate([survive, jnp.ones((1, len(q)), q.dtype)])
    value, back = jax.vjp(value_at, points)
    slope = back(jnp.ones_like(value))[0]
    return value[:-1] / value[-1], slope[:-1] * survive / value[-1]


def escape(q: Array, num_drafts: int) -> Array:
    """[k + 1] 1 - Q(H) for the prefixes H of `q [k]`.

    Q(H) is the chance that the n-th token of H rings before any outside: token by
    token, the product of the module's docstring with e = 1 on H.
    """
    rates, rest = _relative_rates(q, num_drafts)
    nodes, weights = _times(q, num_drafts)
    start = jnp.zeros((2, num_drafts, 1, len(nodes)), q.dtype).at[0, 0].set(1)

    def add(state: Array, rate: Array) -> tuple[Array, Array]:
        state = _with_token(state, rate, nodes, jnp.ones((1, 1), q.dtype))
        return state, state[1, -1, 0]

    _, rings = jax.lax.scan(add, start, rates)
    outside = mass_beyond(rates)[1:]
    inside = product(rings * jnp.exp(-outside[:, None] * nodes[None]), weights)
    inside = inside / jnp.where(rest > 0, inside[-1], 1)
    # Where all tokens are drafted, a set must hold them all.
    inside = jnp.where(rest > 0, inside, jnp.where(outside > 0, 0, 1))
    return jnp.clip(1 - jnp.concatenate([jnp.zeros(1, q.dtype), inside]), 0, 1)


def _relative_rates(q: Array, num_drafts: int) -> tuple[Array, Array]:
    """q [k] by the mass beyond the n - 1 likeliest tokens, and that mass []."""
    likeliest = jax.lax.top_k(q, num_drafts - 1)[1]
    rest = jax.lax.stop_gradient(blockwise_sum(q.at[likeliest].set(0)))
    rates = q / jnp.where(rest > 0, rest, 1)
    return jnp.minimum(rates, _CERTAIN), rest


def _times(q: Array, num_drafts: int) -> tuple[Array, Array]:
    """Nodes [U] and weights [U] for integrals over the time of the n-th ring.

    The trapezoid rule in the logarithm, from where the n-th has hardly rung to where it
    has rung almost surely, in units of `_relative_rates`. With R_m the mass beyond the
    n - m likeliest tokens, of which m must ring, the chance that the n-th has rung at
    tau is at most (R_m tau)^m / m!, for every m; and that it has not, at most that of
    fewer than n events of a Poisson process of rate R_1.
    """
    cut = _CUT[q.dtype]
    q = jax.lax.stop_gradient(q)
    likeliest, places = jax.lax.top_k(q, num_drafts - 1)
    rest = blockwise_sum(q.at[places].set(0))
    beyond = rest + jnp.cumsum(jnp.append(0, likeliest[::-1]))
    orders = range(1, num_drafts + 1)
    first = [(math.log(cut) + math.lgamma(m + 1)) / m for m in orders]
    ratio = jnp.where(rest > 0, rest / jnp.where(rest > 0, beyond, 1), 1)
    ratio = jnp.maximum(ratio, cut)
    low = jnp.max(jnp.asarray(first, q.dtype) + jnp.log(ratio))
    high = math.log(_last_event(num_drafts, cut))
    count = _NODES[q.dtype]
    step = (high - low) / (count - 1)
    nodes = jnp.exp(low + step * jnp.arange(count, dtype=q.dtype))
    return nodes, step * nodes


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


def _light_series(
    rates: Array, nodes: Array, survive: Array, num_drafts: int
) -> tuple[Array, Array]:
    """P and the density's sum of the tokens of `rates [k]`: two arrays [n, S, U].

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
    return jnp.stack(plain), jnp.stack(marked)


def _alternating(left: Array, right: list[Array], order: int) -> Array:
    """sum_l (-1)^l left_l right_(order - l)."""
    return sum(left[m] * right[order - m] * (-1) ** m for m in range(order + 1))


def _multiplied(
    plain: Array, marked: Array, rates: Array, nodes: Array, survive: Array
) -> Array:
    """[S, U] density of the n-th ring, with the tokens of `rates [m]` multiplied in."""

    def add(state: Array, token: tuple) -> tuple[Array, None]:
        rate, survive = token
        return _with_token(state, rate, nodes, survive[:, None]), None

    state, _ = jax.lax.scan(add, jnp.stack([plain, marked]), (rates, survive))
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
