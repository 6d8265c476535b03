"""Sums over a vocabulary that do not lose their small terms in float32.

A running float32 sum of a distribution drops what lies below its last digit: over
50,000 tokens that is a relative error of 1e-5 and more. In blocks it stays below 1e-6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array

_BLOCK = 64


def blockwise_sum(values: Array) -> Array:
    """Sum over the last axis, by blocks of 64 and then over the blocks."""
    while values.shape[-1] > _BLOCK:
        padding = -values.shape[-1] % _BLOCK
        widths = [(0, 0)] * (values.ndim - 1) + [(0, padding)]
        blocks = jnp.pad(values, widths).reshape(*values.shape[:-1], -1, _BLOCK)
        # Without the barrier XLA may join the two levels into one running sum.
        values = jax.lax.optimization_barrier(jnp.sum(blocks, axis=-1))
    return jnp.sum(values, axis=-1)
