"""All that this package takes from jaxopt, in one place.

From it come the interface of solvers (`OptStep`, `IterativeSolver`), L-BFGS-B, and the
implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxopt
from jaxopt.base import IterativeSolver, OptStep
from jaxopt.implicit_diff import custom_root

from globalres_jax.base import Array

__all__ = ["IterativeSolver", "OptStep", "known_root", "minimize_in_box"]


def minimize_in_box(
    objective: Callable[[Array], Array],
    start: Array,
    low: Array,
    high: Array,
    maxiter: int,
    tol: float,
) -> OptStep:
    """Minimises a function of `start [k]` between `low [k]` and `high [k]`.

    By L-BFGS-B, until the projected gradient is shorter than `tol`. Not
    differentiable.

    Returns:
      `params [k]`, and a state with `iter_num`.
    """
    solver = jaxopt.LBFGSB(
        objective, maxiter=maxiter, tol=tol, implicit_diff=False, unroll=False
    )
    return solver.run(start, bounds=(low, high))


def known_root(optimality: Callable, root: Array, problem: Any) -> Array:
    """`root`, with the derivatives of what solves `optimality(root, problem) = 0`.

    By the implicit function theorem, d root = -(dF/droot)^-1 dF/dproblem, in reverse
    mode: the linear system is solved by conjugate gradients on its normal equations.

    Args:
      optimality: F, a function of the root and a pytree.
      root: a solution found beforehand, however that was; no derivative flows into it.
      problem: the pytree to differentiate for.
    """
    return custom_root(optimality)(lambda root, problem: root)(root, problem)
