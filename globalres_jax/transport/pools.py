"""Pooling: a few pools of similar tokens that stand for a vocabulary.

A pool has the target and the draft mass of its tokens, which have similar p/q. The
heaviest tokens are pools of their own, since one of them can move all others.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array

#: The heaviest tokens are pools of their own ...
OWN_POOLS = 32
#: ... and the others share these, by log(p/q): within two standard deviations of its
#: mean finely, which tells near ties apart, and from the least up to log n.
NEAR_POOLS, FAR_POOLS = 64, 64
LEAST_LOG_RATIO = -12.0


class Pools(NamedTuple):
    """A vocabulary as fewer tokens.

    Attributes:
      p: [m] target probability of each pool.
      q: [m] draft probability of each pool.
      own: [OWN_POOLS] the tokens of the first pools, which have no other.
    """

    p: Array
    q: Array
    own: Array


def log_ratio(p: Array, q: Array) -> Array:
    """log(p/q) with zeros replaced by the smallest normal number."""
    tiny = jnp.finfo(p.dtype).tiny
    return jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny))


def bin_width(num_drafts: Array, bins: int) -> Array:
    """Width of each of `bins` bins of log(p/q) from the least to log n: []."""
    return (jnp.log(num_drafts) - LEAST_LOG_RATIO) / bins


def ratio_bins(ratio: Array, num_drafts: Array, bins: int) -> Array:
    """[V] the bin of each log(p/q) among `bins` from the least to log n, clipped."""
    place = (ratio - LEAST_LOG_RATIO) / bin_width(num_drafts, bins)
    return jnp.clip(place, 0, bins - 1).astype(jnp.int32)


def pool_by_ratio(p: Array, q: Array, num_drafts: Array) -> Pools:
    """Pools of tokens with similar p/q; those with p = 0 or q = 0 are in none.

    Args:
      p: [V] target probabilities.
      q: [V] draft probabilities.
      num_drafts: [] n. No token with p/q > n can be served in full, so these share
        the last pool.
    """
    pickable = (p > 0) & (q > 0)
    # Any choice of the heavy ones is valid, so the accelerators' fast one serves.
    own = jax.lax.approx_max_k(jnp.where(pickable, p + q, 0), OWN_POOLS)[1]
    ratio = jnp.where(pickable, log_ratio(p, q), 0)
    mass = jnp.where(pickable, p + q, 0)
    mass = mass / jnp.maximum(jnp.sum(mass), jnp.finfo(p.dtype).tiny)
    centred = ratio - jnp.sum(mass * ratio)
    half_width = 2 * jnp.sqrt(jnp.sum(mass * centred * centred))
    near = (centred / half_width + 1) * (0.5 * NEAR_POOLS)
    slot = OWN_POOLS + NEAR_POOLS + ratio_bins(ratio, num_drafts, FAR_POOLS)
    is_near = jnp.abs(centred) < half_width
    slot = jnp.where(is_near, OWN_POOLS + near.astype(jnp.int32), slot)
    slot = slot.at[own].set(jnp.arange(OWN_POOLS, dtype=jnp.int32))
    size = OWN_POOLS + NEAR_POOLS + FAR_POOLS
    slot = jnp.where(pickable, slot, size)
    empty = jnp.zeros(size, p.dtype)
    return Pools(*(empty.at[slot].add(x, mode="drop") for x in (p, q)), own)
