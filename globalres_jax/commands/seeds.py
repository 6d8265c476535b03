"""Random keys from the seeds that people type."""

from __future__ import annotations

import jax
import numpy as np

from globalres_jax.base import Array


def key_of_seed(seed: int, name: str = "--seed") -> Array:
    """The key of a seed of up to 64 bits; different seeds have different keys.

    Raises:
      ValueError: the seed has more bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise ValueError(
            f"{name}: must lie in [-2^63, 2^64), got a number of "
            f"{seed.bit_length()} bits"
        )
    high, low = divmod(seed % 2**64, 2**32)
    # JAX itself looks at 32 bits where 64-bit numbers are not enabled.
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key
