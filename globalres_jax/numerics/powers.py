"""Powers of a probability close to 1, from the small number that it lacks."""

from __future__ import annotations

import jax.numpy as jnp

from globalres_jax.base import Array


def power_of_rest(lacking: Array, exponent: int | Array) -> Array:
    """`(1 - lacking) ** exponent`, exact to rounding for small `lacking`; 0 ** 0 = 1.

    Raising 1 - lacking itself would multiply its rounding error by the exponent.
    """
    return jnp.exp(exponent * log_of_rest(lacking))


def one_minus_power(lacking: Array, exponent: int | Array) -> Array:
    """`1 - (1 - lacking) ** exponent`, exact to rounding for small `lacking`."""
    return -jnp.expm1(exponent * log_of_rest(lacking))


def log_of_rest(lacking: Array) -> Array:
    """`log(1 - lacking)`, finite also where nothing is left."""
    return jnp.log1p(-jnp.minimum(lacking, 1 - jnp.finfo(lacking.dtype).eps))
