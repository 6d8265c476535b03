"""Solvers of the race dual: projected Newton, and jaxopt's L-BFGS-B.

Both are jaxopt solvers of one box-constrained convex problem,

    minimise Phi(a)  subject to  a_i <= A,

and both only decide how much is accepted: any log-weights give a lossless rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import jaxopt
from jaxopt import implicit_diff
from jaxopt.base import IterativeSolver, OptStep

from globalres_jax.base import Array
from globalres_jax.numerics.rows import in_rows
from globalres_jax.transport.hessian import curvature
from globalres_jax.transport.weight_curve import solve_on_curve
from globalres_jax.transport.newton import acceptance_gap, free_tokens, newton_direction
from globalres_jax.transport.iid_race import (
    LOG_WEIGHT_BOUND,
    LOG_WEIGHT_FLOOR,
    RaceProblem,
    dual_objective,
    pick_law,
    race_weights,
)
from globalres_jax.numerics.sums import blockwise_sum

_POOL_ITERATIONS = 14
#: Problems with fewer tokens than this are solved without pools.
POOLED_FROM = 320


class RaceSolver(Protocol):
    """What `solve_transport` asks of a solver (hashable, equal when alike)."""

    tol: float

    def run(self, init_params: Array, problem: RaceProblem) -> OptStep:
        """Log-weights [V] from `init_params [V]`, and a state with `iter_num`."""

    def solve(self, start: Array, problem: RaceProblem) -> tuple[Array, Array, Array]:
        """An i.i.d. race: log-weights [V], their pick law [V], iterations []."""


class NewtonState(NamedTuple):
    """State of `ProjectedNewton`; `params` is the best point evaluated so far.

    Attributes:
      iter_num: [] evaluations done.
      error: [] acceptance gap at `params`.
      trial: [V] the point to evaluate next.
      residual: [] L1 norm of the free tokens' gradient at `params`.
      damping: [] Levenberg damping, relative to beta.
      retry: [] bool, the last step was rejected and `trial` is `params` again.
      stalled: [] bool, the last step lowered the gap too little.
    """

    iter_num: Array
    error: Array
    trial: Array
    residual: Array
    damping: Array
    retry: Array
    stalled: Array


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
      least_progress: a step that lowers the gap by less than this is the last.
    """

    maxiter: int = 50
    tol: float = 2e-5
    max_step: float = 4.0
    least_progress: float = -math.inf
    implicit_diff: bool = True
    implicit_diff_solve: Callable | None = None
    jit: bool = True
    unroll: bool = False
    verbose: bool = False

    @property
    def goal(self) -> float:
        """The acceptance gap at which iterations stop."""
        return 0.25 * self.tol

    @property
    def enough(self) -> float:
        """The gap of a plan, certified by its own pick law, that needs no more work."""
        return 0.5 * self.tol

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

        stalled = better & (state.error - error < self.least_progress)

        # The step is most of the work, and the last one would not be taken.
        onward = jax.lax.cond(
            keep & (error > self.goal) & ~stalled,
            stepped,
            lambda: jnp.where(keep, trial, params),
        )
        next_state = NewtonState(
            state.iter_num + 1,
            error,
            onward,
            jnp.where(better, residual, state.residual),
            jnp.where(keep, damping, 10 * damping),
            ~keep,
            stalled,
        )
        return OptStep(jnp.where(keep, trial, params), next_state)

    def optimality_fun(self, params: Array, problem: RaceProblem) -> Array:
        """Zero at the solution: log(beta / p), or a - A for tokens held by the bound.

        The logarithm scales the rows alike, which its linear systems depend on.
        """
        pick = pick_law(problem, race_weights(problem, params))
        free = free_tokens(problem, params, pick) & (pick > 0)
        safe_pick, safe_p = (jnp.where(free, x, 1) for x in (pick, problem.p))
        balance = jnp.log(safe_pick) - jnp.log(safe_p)
        return jnp.where(free, balance, params - LOG_WEIGHT_BOUND)

    def solve(self, start: Array, problem: RaceProblem) -> tuple[Array, Array, Array]:
        """Solves an i.i.d. race: a large one on its pools, then by tokens if need be.

        Differentiable through the condition of optimality.
        """
        if len(start) < POOLED_FROM:
            params, state = self.run(start, problem)
            pick = pick_law(problem, race_weights(problem, params))
            return params, pick, state.iter_num
        # In rows, so that on a CPU only those that need it take the way by tokens.
        found = in_rows(self._search)(jax.lax.stop_gradient(problem))
        # The solution is known; the root only gives it its derivatives.
        root = implicit_diff.custom_root(self.optimality_fun, has_aux=True)
        known = root(lambda found, problem: (found[0], found[1:]))
        params, (pick, iterations) = known(found, problem)
        return params, jax.lax.stop_gradient(pick), iterations

    def _search(self, problem: RaceProblem) -> tuple[Array, Array, Array]:
        """Log-weights [V], pick law [V], iterations: from the pools, or by tokens."""
        on_pools = dataclasses.replace(
            self,
            maxiter=min(self.maxiter, _POOL_ITERATIONS),
            least_progress=self.goal,
            implicit_diff=False,
        )
        found, iterations = solve_on_curve(problem, on_pools)
        enough = found.gap <= self.enough

        def by_tokens():
            state = self.init_state(found.log_weights, problem)
            # Zero: where rows run together, those that are done take no step.
            error = jnp.where(enough, 0, found.gap)
            state = state._replace(error=error, iter_num=iterations)
            params, state = self._loop(found.log_weights, state, problem)
            pick = pick_law(problem, race_weights(problem, params))
            # Float32 may be exhausted: what the pools gave is not always improved on.
            better = acceptance_gap(problem, params, pick) < found.gap
            better = better | ~jnp.isfinite(found.gap)
            return (
                jnp.where(better, params, found.log_weights),
                jnp.where(better, pick, found.pick),
                state.iter_num,
            )

        as_found = found.log_weights, found.pick, iterations
        return jax.lax.cond(enough, lambda: as_found, by_tokens)

    def _run(self, init_params: Array, problem: RaceProblem) -> OptStep:
        return self._loop(init_params, self.init_state(init_params, problem), problem)

    def _loop(self, params: Array, state: NewtonState, problem: RaceProblem) -> OptStep:
        # jaxopt traces the first update apart from the loop; here state and update
        # have one type, so a single while_loop halves what is compiled.
        @in_rows
        def loop(params, state, problem):
            def unfinished(carry):
                _, state = carry
                wanted = (state.error > self.goal) & (state.damping < 1e3)
                wanted = wanted & ~state.stalled
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

    def solve(self, start: Array, problem: RaceProblem) -> tuple[Array, Array, Array]:
        """Solves an i.i.d. race from `start [V]`."""
        params, state = self.run(start, problem)
        pick = pick_law(problem, race_weights(problem, params))
        return params, pick, jnp.asarray(state.iter_num, jnp.int32)
