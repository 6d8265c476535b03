"""Sampling without replacement as a race of exponential clocks.

Token i rings at an exponential time of rate q_i; the first n that ring are the drafts.
With g = exp(-q tau), f = 1 - g, e = exp(-u), the n-th rings at tau with density

    sum_i q_i g_i e_i [z^(n-1)] prod_{j != i} (g_j + z f_j e_j)

weighted by exp(-sum u). The sum over i is the part linear in d of the product of
g_j + z f_j e_j + d q_j g_j e_j, so one product of polynomials, truncated at z^n, gives
all. Every term is positive: power sums would cancel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import blockwise_sum


def times(q: Array, num_drafts: int) -> tuple[Array, Array]:
    """Nodes tau [T] and weights [T] for integrals over the time of the n-th ring.

    The trapezoid rule in log tau. The n-th ring is not later than an exponential
    time of rate 1 - (mass of the n - 1 heaviest tokens).
    """
    count, low, top = (96, -12.0, 3.2) if q.dtype == jnp.float32 else (256, -18.0, 3.7)
    heaviest = jax.lax.top_k(q, min(num_drafts - 1, q.shape[-1]))[1]
    rest = blockwise_sum(q.at[heaviest].set(0))
    high = top - jnp.log(jnp.maximum(rest, 1e-30))
    step = (high - low) / (count - 1)
    nodes = jnp.exp(low + step * jnp.arange(count, dtype=q.dtype))
    weights = step * nodes
    # Below the first node integrands fall at least like tau.
    return nodes, weights.at[0].divide(-jnp.expm1(-step))


def laplace(q: Array, num_drafts: int, survive: Array) -> tuple[Array, Array]:
    """L [S] and E[N_i Z] [S, V] at the points u = -log(survive [S, V]).

    Where fewer than n tokens have probability above zero, all of them are drafted.
    """
    nodes, weights = times(q, num_drafts)

    def value_at(survive: Array, tau: Array, weight: Array, last: Array) -> Array:
        silent = jnp.exp(-q * tau)
        rung = -jnp.expm1(-q * tau)[None] * survive
        now = (q * silent)[None] * survive
        state = _product(
            jnp.broadcast_to(silent[None], survive.shape), rung, now, num_drafts
        )
        rings = weight * state[1][..., num_drafts - 1]
        # What has rung at the end of time, if that is less than n.
        return rings + jnp.where(last, jnp.sum(state[0], axis=-1), 0)

    def at(carry, node):
        value, back = jax.vjp(lambda e: value_at(e, *node), survive)
        slope = back(jnp.ones_like(value))[0]
        return (carry[0] + value, carry[1] + slope), None

    empty = jnp.zeros(survive.shape[0], q.dtype), jnp.zeros_like(survive)
    last = jnp.arange(len(nodes)) == len(nodes) - 1
    (value, slope), _ = jax.lax.scan(at, empty, (nodes, weights, last))
    return value, slope * survive


def escape(q: Array, num_drafts: int) -> Array:
    """[V + 1] 1 - Q(H) for the prefixes H of `q [V]`.

    A token outside H rings before n of H have:
    int dtau q(out) exp(-q(out) tau) Pr[fewer than n of H have rung by tau].
    """
    nodes, weights = times(q, num_drafts)
    suffix = jnp.cumsum(q[::-1])[::-1]
    beyond = jnp.append(suffix, 0)

    def add(counts: Array, chance: Array) -> tuple[Array, Array]:
        silent, rung = jnp.exp(-chance * nodes), -jnp.expm1(-chance * nodes)
        shifted = jnp.pad(counts, ((0, 0), (1, 0)))[:, :-1]
        counts = silent[:, None] * counts + rung[:, None] * shifted
        return counts, jnp.sum(counts, axis=1)

    start = jnp.zeros((len(nodes), num_drafts), q.dtype).at[:, 0].set(1)
    _, few = jax.lax.scan(add, start, q)
    few = jnp.concatenate([jnp.ones((1, len(nodes)), q.dtype), few])
    density = beyond[:, None] * jnp.exp(-beyond[:, None] * nodes[None])
    return jnp.clip((density * few) @ weights, 0, 1)


def _product(
    silent: Array, rung: Array, now: Array, num_drafts: int
) -> tuple[Array, Array]:
    """Product over the tokens of silent + z rung + d now, up to z^(n-1) and d^1.

    By halves, so that one level of the tree is one array operation.

    Args:
      silent: [S, V].
      rung: [S, V].
      now: [S, V].
      num_drafts: n.

    Returns:
      Coefficients [S, n] of d^0 and of d^1.
    """
    pad = num_drafts - 2
    plain = jnp.pad(jnp.stack([silent, rung], axis=-1), ((0, 0), (0, 0), (0, pad)))
    marked = jnp.pad(now[..., None], ((0, 0), (0, 0), (0, num_drafts - 1)))
    while plain.shape[1] > 1:
        if plain.shape[1] % 2:
            one = jnp.zeros((plain.shape[0], 1, num_drafts), plain.dtype)
            plain = jnp.concatenate([plain, one.at[..., 0].set(1)], axis=1)
            marked = jnp.concatenate([marked, one], axis=1)
        left, right = plain[:, ::2], plain[:, 1::2]
        marked = _times(marked[:, ::2], right) + _times(left, marked[:, 1::2])
        plain = _times(left, right)
    return plain[:, 0], marked[:, 0]


def _times(a: Array, b: Array) -> Array:
    """Product of polynomials [..., n], truncated."""
    n = a.shape[-1]
    terms = [sum(a[..., j] * b[..., k - j] for j in range(k + 1)) for k in range(n)]
    return jnp.stack(terms, axis=-1)
