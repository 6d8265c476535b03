"""Sizes that come back, so that one program serves many lengths of prompt and text.

All of it happens on the host: what a device is asked to do, even to take over an array
by `jnp.asarray`, is a small program for each new size, and compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from globalres_jax.base import Array
from globalres_jax.decoding.config import SpeculativeConfig

SMALLEST = 32
FINER_FROM = 256


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
    """The least size that is not below `count`.

    Powers of two from `SMALLEST` to `FINER_FROM`, and beyond it four sizes an octave,
    where slots that hold nothing would be many.
    """
    octave = 1 << (count - 1).bit_length()
    if octave <= FINER_FROM:
        return max(SMALLEST, octave)
    return -(-count // (octave // 8)) * (octave // 8)


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


def pad_prompts(prompts: Array | np.ndarray, width: int) -> Array:
    """`prompts [B, P]`, concrete, as [B, width] int32."""
    host = np.asarray(prompts).astype(np.int32)
    return jax.device_put(np.pad(host, ((0, 0), (0, width - host.shape[1]))))


def first_columns(x: Array, size: int) -> Array:
    """The first `size` columns of `x [B, T]`; waits for `x` if it has more."""
    if x.shape[1] == size or isinstance(x, jax.core.Tracer):
        return x[:, :size] if x.shape[1] > size else x
    host = np.asarray(x)[:, :size]
    if not x.committed:
        return jax.device_put(host)
    return jax.make_array_from_callback(host.shape, x.sharding, lambda at: host[at])
