"""Solvers of the race dual: projected Newton, and jaxopt's L-BFGS-B.

Both are jaxopt solvers of one box-constrained convex problem,

    minimise Phi(a)  subject to  a_i <= A,

and both only decide how much is accepted: any log-weights give a lossless rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import jaxopt
from jaxopt import implicit_diff
from jaxopt.base import IterativeSolver, OptStep

from globalres_jax.base import Array
from globalres_jax.batching import in_rows
from globalres_jax.race import (
    LOG_WEIGHT_BOUND,
    Curvature,
    RaceProblem,
    curvature,
    dual_objective,
    optimal_excess,
    pick_law,
    race_weights,
    rejection_rate,
)
from globalres_jax.summation import blockwise_sum

#: Log-weight that stands for weight zero where an optimizer needs a finite number.
LOG_WEIGHT_FLOOR = -80.0
_TINY = 1e-37


class RaceSolver(Protocol):
    """What `solve_transport` asks of a solver (hashable, equal when alike)."""

    tol: float

    def run(self, init_params: Array, problem: RaceProblem) -> OptStep:
        """Log-weights [V] from `init_params [V]`, and a state with `iter_num`."""

    def refine(
        self, start: Array, gap: Array, problem: RaceProblem
    ) -> tuple[Array, Array]:
        """The same from a start whose gap is known; also the iterations [].

        Where the gap is small enough nothing is evaluated, and that is the rule.
        """


def acceptance_gap(problem: RaceProblem, log_weights: Array, pick: Array) -> Array:
    """Optimal minus achieved acceptance rate, from two small sums: [].

    The race rejects `sum (p - beta)_+`, the best rule rejects `Q(H*) - p(H*)`.
    """
    rejected = rejection_rate(problem.p, pick, problem.missing)
    return rejected - optimal_excess(problem, log_weights)


def free_tokens(problem: RaceProblem, log_weights: Array, pick: Array) -> Array:
    """[V] bool: tokens whose optimality condition is `beta_i = p_i`.

    The others have no mass to move, or sit at the bound and still want more.
    """
    satisfied = (log_weights >= LOG_WEIGHT_BOUND) & (pick <= problem.p)
    return (problem.p > 0) & (problem.q > 0) & ~satisfied


def newton_direction(
    problem: RaceProblem, curve: Curvature, free: Array, damping: Array
) -> Array:
    """Levenberg-damped Newton step on the free tokens: [V].

    The Hessian is diagonal plus low rank; its diagonal is scaled to 1.
    """
    # The exact diagonal is positive; rounding near the bound is not always.
    diagonal = jnp.maximum(curve.diagonal, 1e-3 * curve.pick)
    diagonal = diagonal + damping * curve.pick + _TINY
    root = jnp.where(free, jax.lax.rsqrt(diagonal), 0)
    gradient = jnp.where(free, problem.p - curve.pick, 0) * root
    step = curve.solve_scaled(root, gradient)
    # A factorisation that rounding broke leaves the diagonal step.
    return jnp.where(jnp.all(jnp.isfinite(step)), step, gradient) * root


class NewtonState(NamedTuple):
    """State of `ProjectedNewton`; `params` is the best point evaluated so far.

    Attributes:
      iter_num: [] evaluations done.
      error: [] acceptance gap at `params`.
      trial: [V] the point to evaluate next.
      residual: [] L1 norm of the free tokens' gradient at `params`.
      damping: [] Levenberg damping, relative to beta.
      retry: [] bool, the last step was rejected and `trial` is `params` again.
    """

    iter_num: Array
    error: Array
    trial: Array
    residual: Array
    damping: Array
    retry: Array


@dataclasses.dataclass(unsafe_hash=True)
class ProjectedNewton(IterativeSolver):
    """Projected Newton on the race dual.

    Each iteration evaluates one point, and judges it before stepping on: an
    overloaded start can already be optimal for acceptance. A point that lowers the
    residual is kept and a damped Newton step is taken from it; otherwise the last one
    is evaluated again for a step with ten times the damping. (The objective itself is
    too flat in float32 to steer by.) It stops where steps have become too small to
    change anything: then float32 is exhausted.

    Attributes:
      maxiter: largest number of iterations.
      tol: acceptance gap at which a plan counts as converged. The loop goes on to
        a quarter of it, so that rounding in the last evaluation does not undo it.
      max_step: largest change of a log-weight in one step.
    """

    maxiter: int = 50
    tol: float = 2e-5
    max_step: float = 4.0
    implicit_diff: bool = True
    implicit_diff_solve: Callable | None = None
    jit: bool = True
    unroll: bool = False
    verbose: bool = False

    @property
    def _goal(self) -> float:
        return 0.25 * self.tol

    def init_state(self, init_params: Array, problem: RaceProblem) -> NewtonState:
        """State in which nothing has been evaluated yet."""
        dtype = init_params.dtype
        infinite = jnp.full_like(problem.excess, jnp.inf, dtype=dtype)
        return NewtonState(
            jnp.zeros((), jnp.int32),
            infinite,
            init_params,
            infinite,
            jnp.full_like(infinite, 1e-4),
            jnp.zeros((), bool),
        )

    def update(
        self, params: Array, state: NewtonState, problem: RaceProblem
    ) -> OptStep:
        """Evaluates `state.trial`, keeps it if it is better, and steps on."""
        trial = state.trial
        curve = curvature(problem, race_weights(problem, trial))
        free = free_tokens(problem, trial, curve.pick)
        residual = blockwise_sum(jnp.where(free, jnp.abs(curve.pick - problem.p), 0))
        better = residual < state.residual
        # A rejected step comes back to `params` once more, for a shorter one.
        keep = better | state.retry

        # In proportion to the residual: where no token is held by the bound, the
        # common scale of all weights is free, and an undamped step is all noise.
        relaxed = jnp.maximum(jnp.maximum(0.1 * state.damping, 0.03 * residual), 1e-6)
        damping = jnp.where(better, relaxed, state.damping)
        error = jnp.where(
            better, acceptance_gap(problem, trial, curve.pick), state.error
        )

        def stepped():
            step = newton_direction(problem, curve, free, damping)
            step = jnp.clip(step, -self.max_step, self.max_step)
            return jnp.clip(trial + step, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)

        # The step is most of the work, and the last one would not be taken.
        onward = jax.lax.cond(
            keep & (error > self._goal), stepped, lambda: jnp.where(keep, trial, params)
        )
        next_state = NewtonState(
            state.iter_num + 1,
            error,
            onward,
            jnp.where(better, residual, state.residual),
            jnp.where(keep, damping, 10 * damping),
            ~keep,
        )
        return OptStep(jnp.where(keep, trial, params), next_state)

    def optimality_fun(self, params: Array, problem: RaceProblem) -> Array:
        """Zero at the solution: beta - p, or a - A for tokens held by the bound."""
        pick = pick_law(problem, race_weights(problem, params))
        free = free_tokens(problem, params, pick)
        return jnp.where(free, pick - problem.p, params - LOG_WEIGHT_BOUND)

    def refine(
        self, start: Array, gap: Array, problem: RaceProblem
    ) -> tuple[Array, Array]:
        """Goes on from a start whose gap is known, if that is not good enough."""

        def solve(init_params: tuple[Array, Array], problem: RaceProblem):
            start, gap = init_params
            state = self.init_state(start, problem)._replace(error=gap)
            return self._loop(start, state, problem)

        root = implicit_diff.custom_root(self.optimality_fun, has_aux=True)
        params, state = root(solve)((start, gap), problem)
        return params, state.iter_num

    def _run(self, init_params: Array, problem: RaceProblem) -> OptStep:
        return self._loop(init_params, self.init_state(init_params, problem), problem)

    def _loop(self, params: Array, state: NewtonState, problem: RaceProblem) -> OptStep:
        # jaxopt traces the first update apart from the loop; here state and update
        # have one type, so a single while_loop halves what is compiled.
        @in_rows
        def loop(params, state, problem):
            def unfinished(carry):
                _, state = carry
                wanted = (state.error > self._goal) & (state.damping < 1e3)
                return (state.iter_num < self.maxiter) & wanted

            def body(carry):
                return tuple(self.update(*carry, problem))

            return jax.lax.while_loop(unfinished, body, (params, state))

        return OptStep(*loop(params, state, problem))


@dataclasses.dataclass(frozen=True)
class BoxLBFGS:
    """jaxopt's L-BFGS-B on the race dual: the second way, slower and independent.

    Attributes:
      maxiter: largest number of iterations.
      tol: acceptance gap at which a plan counts as converged. The iteration itself
        stops on the projected gradient, at a tenth of this.
    """

    maxiter: int = 500
    tol: float = 1e-4

    def run(self, init_params: Array, problem: RaceProblem) -> OptStep:
        """Minimises the dual from `init_params [V]`."""
        solver = jaxopt.LBFGSB(
            lambda a: dual_objective(problem, a),
            maxiter=self.maxiter,
            tol=0.1 * self.tol,
            implicit_diff=False,
            unroll=False,
        )
        bounds = (
            jnp.full_like(init_params, LOG_WEIGHT_FLOOR),
            jnp.full_like(init_params, LOG_WEIGHT_BOUND),
        )
        return solver.run(init_params, bounds=bounds)

    def refine(
        self, start: Array, gap: Array, problem: RaceProblem
    ) -> tuple[Array, Array]:
        """Runs from `start [V]` if its gap is not good enough."""

        def again():
            params, state = self.run(start, problem)
            return params, jnp.asarray(state.iter_num, jnp.int32)

        unchanged = start, jnp.zeros((), jnp.int32)
        return jax.lax.cond(gap > self.tol, again, lambda: unchanged)
