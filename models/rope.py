"""Rotary position embedding: what a position does to queries and keys."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864), halves paired.

    Attributes:
      base: longest wavelength over 2 pi.
      scale: positions are divided by this (linear scaling).
      factors: [head_dim / 2] each frequency is divided by its own (Llama 3.1).
    """

    base: float = 10_000.0
    scale: float = 1.0
    factors: tuple[float, ...] | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """[head_dim / 2] radians a position."""
        half = head_dim // 2
        frequency = self.base ** (-np.arange(half, dtype=np.float64) / half)
        if self.factors is not None:
            frequency = frequency / np.asarray(self.factors)
        return (frequency / self.scale).astype(np.float32)


def llama3_factors(
    base: float,
    head_dim: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> tuple[float, ...]:
    """What Llama 3.1 divides its frequencies by: long waves, and smoothly shorter."""
    wavelength = 2 * math.pi / Rope(base).frequencies(head_dim).astype(np.float64)
    turns = original_max_position_embeddings / wavelength
    smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return tuple(1 / ((1 - smooth) / factor + smooth))


def rotate(x: Array, positions: Array, frequencies: np.ndarray) -> Array:
    """Turns pairs of features by angles that grow with the position.

    Args:
      x: [B, L, heads, head_dim].
      positions: [B, L] integers.
      frequencies: [head_dim / 2].
    """
    half = x.shape[-1] // 2
    angle = (
        positions[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    )
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    left, right = x[..., :half], x[..., half:]
    turned = jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )
    return turned.astype(x.dtype)
