"""Integrals over the race's clock, int_0^inf exp(-t) f(t) dt, as sums on fixed nodes.

Everything that a race needs is an integral of this kind, whose f is a product of terms
exp(-t w) and t w exp(-t w) for weights w = exp(a) from 0 to exp(A). In s = log t each
is a bump of unit width about s = -a, smooth and falling off at both ends, so the
trapezoid rule on one fixed grid serves every problem, and its error falls
exponentially in 1 / step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

#: Upper bound A of the log-weights. A token at the bound beats every other one; the
#: acceptance given up is about exp(-(A - largest inner log-weight)).
LOG_WEIGHT_BOUND = 24.0
#: Log-weight that stands for weight zero where an optimizer needs a finite number.
LOG_WEIGHT_FLOOR = -80.0


class Grid(NamedTuple):
    """A grid in s = log t.

    Attributes:
      step: distance of the nodes. Integrands are analytic where |Im s| < pi/2; for the
        narrowest, x exp(-x) with x = t w, a step h errs by 2 |Gamma(1 + 2 pi i / h)|:
        3e-7 at 0.55, 4e-6 at 0.65, 3e-13 at 0.3.
      margin: how far below -A the last node lies. From there on integrands fall like
        exp(s); that geometric tail is folded into the last weight, with an error of
        order n^2 exp(-2 margin).
      top: where the nodes begin; exp(-exp(top)) is what is cut off.
    """

    step: float
    margin: float
    top: float


#: "fine" decides the output law and is exact to rounding in float32; "coarse" serves a
#: solver's iterations, to a gap of 3e-6. In float64 both are the one grid.
_FLOAT32_GRIDS = {
    "fine": Grid(step=0.55, margin=11.0, top=3.0),
    "coarse": Grid(step=0.65, margin=10.0, top=2.7),
}
_FLOAT64_GRID = Grid(step=0.3, margin=17.0, top=3.7)


def quadrature(dtype, grid: str = "fine") -> tuple[np.ndarray, np.ndarray]:
    """Nodes t [S], descending, and weights: `sum_s weights f(t) ~ int exp(-t) f(t) dt`.

    Args:
      dtype: float32 or float64.
      grid: "fine" or "coarse".
    """
    step, margin, top = _FLOAT32_GRIDS[grid] if dtype == jnp.float32 else _FLOAT64_GRID
    nodes = np.exp(np.arange(-(LOG_WEIGHT_BOUND + margin), top, step))[::-1]
    weights = step * nodes * np.exp(-nodes)
    weights[-1] /= 1 - np.exp(-step)
    return nodes.astype(dtype), weights.astype(dtype)
