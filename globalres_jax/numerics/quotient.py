"""A quotient of probabilities whose derivatives do not overflow.

JAX differentiates x / y by 1 / y^2, which in float32 is infinite from y = 1e-19 on, and
infinity times a zero that comes later is no number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array


@jax.custom_jvp
def quotient(x: Array, y: Array) -> Array:
    """x / y, and 0 without derivatives where y is not above zero."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


@quotient.defjvp
def _(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    ratio, safe = quotient(x, y), jnp.where(y > 0, y, 1)
    return ratio, jnp.where(y > 0, (dx - ratio * dy) / safe, 0)
