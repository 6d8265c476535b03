"""Sizes that come back, so that one program serves many lengths of prompt and text.

All of it happens on the host: on a device each new size would be a small program, and
compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.decoding.config import SpeculativeConfig

SMALLEST = 32


class Sizes(NamedTuple):
    """What the shapes of a program come from.

    Attributes:
      width: of the prompts.
      room: for the new tokens of a row.
      capacity: slots of the caches.
    """

    width: int
    room: int
    capacity: int


def bucket(count: int) -> int:
    """The least power of two from `SMALLEST` on that is not below `count`."""
    return max(SMALLEST, 1 << (count - 1).bit_length())


def bucket_sizes(config: SpeculativeConfig, width: int, room: int) -> Sizes:
    """The sizes for prompts of `width` tokens and up to `room` new ones.

    Raises:
      ValueError: the config's `cache_length` is too short for them.
    """
    capacity = config.capacity(width, room)
    wide, roomy = bucket(width), bucket(room)
    if config.cache_length is None:
        capacity = config.capacity(wide, roomy)
    return Sizes(min(wide, capacity), roomy, capacity)


def pad_prompts(prompts: Array, width: int) -> Array:
    """`prompts [B, P]`, concrete, as [B, width] int32."""
    host = np.asarray(prompts, np.int32)
    return jnp.asarray(np.pad(host, ((0, 0), (0, width - host.shape[1]))))


def first_columns(x: Array, size: int) -> Array:
    """The first `size` columns of `x [B, T]`; waits for `x` if it has more."""
    if x.shape[1] == size or isinstance(x, jax.core.Tracer):
        return x[:, :size] if x.shape[1] > size else x
    host = np.asarray(x)[:, :size]
    if not x.committed:
        return jnp.asarray(host)
    return jax.make_array_from_callback(host.shape, x.sharding, lambda at: host[at])
