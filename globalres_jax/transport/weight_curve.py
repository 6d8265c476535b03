"""An increasing function of the log-weight as a small table: tabulate, invert, read.

The share of its own drafts that a token of weight w = e^a is picked with is a sum of
bumps, one for each node t_s of a quadrature, with the same scales for every token:

    F(a) = sum_s scale_s e^a exp(-t_s e^a)

F increases from 0, so the weight that gives a token a wanted share is F^-1 of it: one
table of log F, with its slopes, at 256 log-weights answers for a whole vocabulary.

Example: one draft, against the reject slot alone. The scales are those of
int exp(-t) dt and F(a) = w / (1 + w): shares 1/3 and 1/2 take weights 1/2 and 1.

    _, scale = quadrature(jnp.float32, "fine")
    curve = tabulate(scale, "fine")
    jnp.exp(invert(curve, jnp.log(jnp.array([1 / 3, 1 / 2]))))     # [0.5, 1.0]
    jnp.exp(read(curve.height, jnp.log(jnp.array([0.5, 1.0]))))    # [1/3, 1/2]

A larger share than any weight gives takes the bound A.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.rows import by_platform
from globalres_jax.numerics.sums import product
from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND, quadrature

#: Log-weights of the table. Below the least F is proportional to e^a, to 1e-8; the
#: spacing of 0.17 makes cubics exact to about 1e-6.
POINTS = np.linspace(-20, LOG_WEIGHT_BOUND, 256)
#: Python numbers: NumPy's own would make float32 arrays float64 where JAX allows that.
_LEAST = float(POINTS[0])
_SPACING = float(POINTS[1] - POINTS[0])
#: Points of a block in the search for a cell: the square root of their number.
_BLOCK = 16
#: A cell's cubic from (slope at its left, slope at its right, width), and two numbers
#: that are passed on.
_HERMITE = np.asarray(
    [
        [1, 1, -2, 0, 0],
        [-2, -1, 3, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
)
#: Cubics are monotone whose end slopes are at most three times the mean one.
_STEEPEST = 3
#: Stands for a flat piece's rise, and for a share of zero.
_LEAST_RISE = 1e-9
_TINY = 1e-30


class WeightCurve(NamedTuple):
    """An increasing function at `POINTS`.

    Attributes:
      height: [256] log F.
      slope: [256] its derivative.
    """

    height: Array
    slope: Array


def tabulate(scale: Array, grid: str) -> WeightCurve:
    """The curve of F for `scale [S]` at the nodes of a quadrature's grid."""
    kernels = _kernels(scale.dtype, grid)
    share, rise = (product(jnp.asarray(scale), jnp.asarray(k)) for k in kernels)
    return WeightCurve(safe_log(share), rise / jnp.maximum(share, _TINY))


def invert(curve: WeightCurve, wanted: Array) -> Array:
    """[V] log-weights at which log F is `wanted [V]`.

    Cubic between the table's points, and monotone: where F is flat its digits are
    noise, and any weight there serves.
    """
    # 1. In each cell a as a cubic of u in [0, 1], the place between two heights.
    height = jax.lax.cummax(curve.height)
    low, rise = height[:-1], jnp.maximum(jnp.diff(height), _LEAST_RISE)
    steepness = 1 / jnp.maximum(curve.slope, _LEAST_RISE)
    left, right = (
        jnp.minimum(rise * s, _STEEPEST * _SPACING)
        for s in (steepness[:-1], steepness[1:])
    )
    # A sum keeps XLA from forming the numbers of a cell anew for each token.
    cells = jnp.stack([left, right, jnp.full_like(low, _SPACING), low, 1 / rise])
    cells = jnp.sum(_HERMITE.astype(low.dtype)[..., None] * cells[None], axis=1)

    # 2. Each token's cell and place in it.
    cell = jnp.minimum(_cell(height, wanted), len(rise) - 1)
    cubic, square, linear, low, scale = (
        row.at[cell].get(mode="promise_in_bounds") for row in cells
    )
    u = jnp.clip((wanted - low) * scale, 0, 1)
    first = _LEAST + _SPACING * cell.astype(wanted.dtype)
    log_weights = first + u * (linear + u * (square + u * cubic))

    # 3. Beyond both ends.
    below = wanted < height[0]
    log_weights = jnp.where(below, _LEAST + wanted - height[0], log_weights)
    return jnp.where(wanted >= height[-1], LOG_WEIGHT_BOUND, log_weights)


def read(table: Array, log_weights: Array) -> Array:
    """Values [m] of a `table [256]` at `log_weights [m]`, linear between points."""
    place = jnp.clip((log_weights - _LEAST) / _SPACING, 0, len(POINTS) - 1)
    cell = jnp.minimum(place.astype(jnp.int32), len(POINTS) - 2)
    return table[cell] + (place - cell) * (table[cell + 1] - table[cell])


def safe_log(values: Array) -> Array:
    """Logarithm, with zeros replaced by a tiny number."""
    return jnp.log(jnp.maximum(values, _TINY))


@functools.lru_cache
def _kernels(dtype, grid: str) -> tuple[np.ndarray, np.ndarray]:
    """e^a exp(-t e^a) and its derivative in a, at nodes and table: [S, 256] each."""
    nodes = quadrature(dtype, grid)[0].astype(np.float64)
    x = nodes[:, None] * np.exp(POINTS)
    value = np.exp(POINTS - x)
    return value.astype(dtype), ((1 - x) * value).astype(dtype)


def _cell(table: Array, values: Array) -> Array:
    """[V] how many entries of the ascending `table [256]` but the first are below.

    By comparing with all of them, or, where comparing is not cheap, with every
    sixteenth and then with those in between. A binary search takes longer.
    """

    def in_two_levels(table: Array, values: Array) -> Array:
        blocks = table.reshape(_BLOCK, _BLOCK)
        block = _below(blocks[None, 1:, 0], values)
        return _BLOCK * block + _below(blocks[block, 1:], values)

    return by_platform(
        table,
        values,
        cpu=in_two_levels,
        default=lambda table, values: _below(table[None, 1:], values),
    )


def _below(table: Array, values: Array) -> Array:
    return jnp.sum(table <= values[:, None], axis=1, dtype=jnp.uint32)
