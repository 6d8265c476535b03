"""All that this package takes from jaxopt, in one place.

From it come the interface of solvers (`OptStep`, `IterativeSolver`), L-BFGS-B, and the
implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
from jax.scipy.sparse.linalg import cg
from jaxopt.base import IterativeSolver, OptStep
from jaxopt.implicit_diff import custom_root

from globalres_jax.base import Array

#: Of derivatives, in float32 and in float64, and iterations to get there.
_RELATIVE_ERROR = (1e-5, 1e-10)
_ITERATIONS = 200

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


def known_root(
    optimality: Callable, root: Array, problem: Any, diagonal: Array
) -> Array:
    """`root`, with the derivatives of what solves `optimality(root, problem) = 0`.

    By the implicit function theorem, d root = -(dF/droot)^-1 dF/dproblem, in reverse
    mode. The linear system is solved by conjugate gradients.

    Args:
      optimality: F, a function of the root [k] and a pytree, whose Jacobian in the root
        is symmetric and positive definite.
      root: a solution found beforehand, however that was; no derivative flows into it.
      problem: the pytree to differentiate for.
      diagonal: [k] about the Jacobian's diagonal; what is 0 has no derivative.
    """
    # The unknown is what is added to the root, scaled to a diagonal of 1: so far 0.
    safe = jnp.where(diagonal > 0, diagonal, 1)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(safe), 0)
    given = (problem, *jax.lax.stop_gradient((root, scale)))

    def scaled(step: Array, given: tuple) -> Array:
        problem, root, scale = given
        return scale * optimality(root + scale * step, problem)

    def solve(matvec: Callable, right: Array) -> Array:
        tol = _RELATIVE_ERROR[right.dtype == jnp.float64]
        return cg(matvec, right, tol=tol, maxiter=_ITERATIONS)[0]

    implicit = custom_root(scaled, solve=solve)
    # Zeros made from the root, so that each row of a batch has its own: one for all
    # would get the sum of all rows' derivatives.
    nothing = implicit(lambda step, given: step)(0 * given[1], given)
    return given[1] + given[2] * nothing
