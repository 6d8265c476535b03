"""Pooling: smaller problems that stand for large ones.

Tokens of one pool share one weight. Then a pool is a token: its p and q are sums, the
pick law of a member is its share of q, and everything stays exact and lossless; only
acceptance is given up, by at most half the pool's mass times the spread of log(p/q)
in it. The certificate, taken over all tokens, reports what it was.

Two uses: a few pools of neighbours in q/p give a start for the full problem, and in a
large vocabulary thousands of tokens of negligible mass become a few hundred pools.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array

#: Pools that stand for a whole problem when a start is looked for.
START_POOLS = 96
#: Problems with fewer tokens than this are solved without such a start.
START_FROM = 320

#: In larger vocabularies this many tokens keep a weight of their own ...
HEAVY_TOKENS = 4096
#: ... and the others share this many, by log(p/q).
TAIL_POOLS = 512
_PARTS = 32
_LOG_RATIO_RANGE = (-12.0, 12.0)


class Pools(NamedTuple):
    """A vocabulary as fewer tokens.

    Attributes:
      p: [m] target probability of each pool.
      q: [m] draft probability of each pool.
      slot: [V] the pool of each token; m for a token that nothing can pick.
    """

    p: Array
    q: Array
    slot: Array

    def expand(self, values: Array) -> Array:
        """[V] the value of each token's pool from `values [m]`; 0 without a pool."""
        return jnp.append(values, 0)[self.slot]


def log_ratio(p: Array, q: Array) -> Array:
    """log(p/q) with zeros replaced by the smallest normal number."""
    tiny = jnp.finfo(p.dtype).tiny
    return jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny))


def pool_tail(p: Array, q: Array) -> Pools:
    """The heaviest tokens alone, the others pooled by log(p/q).

    Args:
      p: [V] target distribution.
      q: [V] draft distribution.
    """
    vocab_size = p.shape[0]
    pickable = (p > 0) & (q > 0)
    # Any choice of the heavy ones is valid, so the accelerators' fast one serves.
    heavy = jax.lax.approx_max_k(jnp.where(pickable, p + q, 0), HEAVY_TOKENS)[1]
    low, high = _LOG_RATIO_RANGE
    place = (log_ratio(p, q) - low) * (TAIL_POOLS / (high - low))
    pool = jnp.clip(place, 0, TAIL_POOLS - 1).astype(jnp.int32)
    size = HEAVY_TOKENS + TAIL_POOLS
    slot = jnp.where(pickable, HEAVY_TOKENS + pool, size)
    slot = slot.at[heavy].set(
        jnp.where(pickable[heavy], jnp.arange(HEAVY_TOKENS, dtype=jnp.int32), size)
    )
    in_tail = jnp.ones(vocab_size, bool).at[heavy].set(False) & pickable

    # Several partial sums of each pool: one would lose the smallest tokens.
    part = jnp.arange(vocab_size) % _PARTS

    def pooled(mass: Array) -> Array:
        parts = jnp.zeros((_PARTS, TAIL_POOLS), mass.dtype)
        parts = parts.at[part, pool].add(jnp.where(in_tail, mass, 0))
        tail = jnp.sum(parts, axis=0)
        return jnp.concatenate([jnp.where(pickable, mass, 0)[heavy], tail])

    return Pools(pooled(p), pooled(q), slot)


def pool_neighbours(values: Array) -> Array:
    """[START_POOLS] sums over equally many neighbours of `values [V]`."""
    return jnp.sum(_rows(values, 0), axis=1)


def spread_over_neighbours(
    pooled: Array, pool_ratio: Array, ratio: Array, bound: float
) -> Array:
    """[V] log-weights from those of the pools of neighbours, interpolated in log(p/q).

    Args:
      pooled: [m] log-weight of each pool.
      pool_ratio: [m] log(p/q) of each pool.
      ratio: [V] log(p/q) of each token.
      bound: largest log-weight.
    """
    # The slope of a in log(p/q) is 1 for light weights and steeper near the bound.
    rise = pooled[2:] - pooled[:-2]
    run = jnp.maximum(pool_ratio[2:] - pool_ratio[:-2], 1e-3)
    slope = jnp.clip(jnp.pad(rise / run, 1, constant_values=1.0), 1.0, 4.0)
    slope = jnp.where(pooled >= bound, 0, slope)
    local = _rows(ratio, 0) - pool_ratio[:, None]
    start = pooled[:, None] + slope[:, None] * jnp.clip(local, -4, 4)
    return jnp.minimum(start.reshape(-1)[: ratio.shape[0]], bound)


def _rows(values: Array, fill: float) -> Array:
    """`values [V]`, padded, as [START_POOLS, ceil(V / START_POOLS)]."""
    width = -(-values.shape[0] // START_POOLS)
    padding = START_POOLS * width - values.shape[0]
    return jnp.pad(values, (0, padding), constant_values=fill).reshape(-1, width)
