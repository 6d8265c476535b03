"""Floats as unsigned integers of the same order, so that a search can halve them.

Between two floats lie as many floats as their integers differ by, so halving finds any
float in as many steps as it has bits, whatever the scale of the numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array


def to_order(values: Array) -> Array:
    """Unsigned integers that compare as the floats `values` do; NaN is at an end."""
    bits = jax.lax.bitcast_convert_type(values, _unsigned(values.dtype))
    top = _top_bit(bits.dtype)
    return jnp.where(bits >= top, ~bits, bits | top)


def from_order(order: Array) -> Array:
    """The floats that `to_order` made `order` of."""
    top = _top_bit(order.dtype)
    bits = jnp.where(order >= top, order ^ top, ~order)
    return jax.lax.bitcast_convert_type(bits, f"float{8 * order.dtype.itemsize}")


def between(low: Array, high: Array) -> Array:
    """The middle of two such integers, rounded up."""
    return high - (high - low) // 2


def _unsigned(dtype) -> jnp.dtype:
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def _top_bit(dtype) -> Array:
    return jnp.asarray(1, dtype) << (8 * dtype.itemsize - 1)
