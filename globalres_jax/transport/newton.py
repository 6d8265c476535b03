"""Projected Newton on the race dual: where to start, a damped step, the loop."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.rows import in_rows
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport.hessian import Curvature
from globalres_jax.transport.jaxopt_interface import IterativeSolver, OptStep
from globalres_jax.transport.pools import log_ratio
from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND, LOG_WEIGHT_FLOOR
from globalres_jax.transport.race import (
    Race,
    acceptance_gap,
    free_tokens,
    optimality,
    race_weights,
)

#: Start: where H* is served in full, more than needed serves as well as what is needed,
#: and log-weights stay where the mean field can be evaluated.
_OVERLOAD = 1.1
_LARGEST_AVERAGE = 0.5 * LOG_WEIGHT_BOUND
_LARGEST_LOG_SHARE = -1e-6

#: Levenberg damping, relative to beta: at first; after a step that was kept, in
#: proportion to the last one and to the residual, and at least; after one that was not;
#: and when no step is short enough any more.
_FIRST_DAMPING = 1e-4
_RELAXED, _OF_RESIDUAL, _LEAST_DAMPING = 0.1, 0.03, 1e-6
_TIGHTENED = 10
_HOPELESS = 1e3
#: The exact diagonal is positive; rounding near the bound is not always.
_LEAST_DIAGONAL = 1e-3
_TINY = 1e-37

#: Gaps that end the work, as parts of the tolerance: of the loop, so that rounding in
#: the last evaluation does not undo it; and of a plan certified by its own pick law.
_GOAL = 0.25
_ENOUGH = 0.5
#: On pools, which take 4 to 9 iterations.
_POOL_ITERATIONS = 14


class NewtonState(NamedTuple):
    """State of `ProjectedNewton`; `params` is the best point evaluated so far.

    Attributes:
      iter_num: [] evaluations done.
      error: [] acceptance gap at `params`.
      trial: [k] the point to evaluate next.
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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
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
        a quarter of it.
      max_step: largest change of a log-weight in one step.
      least_progress: a step that lowers the gap by less than this is the last.
    """

    maxiter: int = 50
    tol: float = 2e-5
    max_step: float = 4.0
    least_progress: float = -math.inf

    # What jaxopt's base class asks for. A plan is differentiated around the whole
    # solve (`plan.py`), not here.
    implicit_diff: ClassVar[bool] = False
    jit: ClassVar[bool] = True
    unroll: ClassVar[bool] = False
    verbose: ClassVar[bool] = False

    def __post_init__(self):
        """Nothing: jaxopt would set `update` to a jitted one."""

    @property
    def goal(self) -> float:
        """The acceptance gap at which iterations stop."""
        return _GOAL * self.tol

    @property
    def enough(self) -> float:
        """The gap of a plan, certified by its own pick law, that needs no more work."""
        return _ENOUGH * self.tol

    def on_pools(self) -> ProjectedNewton:
        """The solver for the pools of a large race: stops where they no longer help."""
        return dataclasses.replace(
            self,
            maxiter=min(self.maxiter, _POOL_ITERATIONS),
            least_progress=self.goal,
        )

    def run(self, init_params: Array, race: Race) -> OptStep:
        """Log-weights from `init_params [k]`, and the last `NewtonState`."""
        return self._loop(init_params, self.init_state(init_params, race), race)

    def resume(
        self, params: Array, race: Race, error: Array, iterations: Array
    ) -> OptStep:
        """`run` from a point of known gap `error []` that took `iterations []`."""
        state = self.init_state(params, race)
        return self._loop(
            params, state._replace(error=error, iter_num=iterations), race
        )

    def init_state(self, init_params: Array, race: Race) -> NewtonState:
        """State in which nothing has been evaluated yet."""
        infinite = jnp.full_like(race.excess, jnp.inf, dtype=init_params.dtype)
        return NewtonState(
            iter_num=jnp.zeros((), jnp.int32),
            error=infinite,
            trial=init_params,
            residual=infinite,
            damping=jnp.full_like(infinite, _FIRST_DAMPING),
            retry=jnp.zeros((), bool),
            stalled=jnp.zeros((), bool),
        )

    def update(self, params: Array, state: NewtonState, race: Race) -> OptStep:
        """Evaluates `state.trial`, keeps it if it is better, and steps on."""
        # 1. Beta and the Hessian at the trial point, and what is left there.
        trial = state.trial
        curve = race.curvature(race_weights(race, trial))
        free = free_tokens(race, trial, curve.pick)
        residual = blockwise_sum(jnp.where(free, jnp.abs(curve.pick - race.p), 0))

        # 2. Better or not. A rejected step comes back to `params` once more, for a
        #    shorter one.
        better = residual < state.residual
        keep = better | state.retry
        gap = acceptance_gap(race, trial, curve.pick)
        error = jnp.where(better, gap, state.error)
        stalled = better & (state.error - error < self.least_progress)

        # 3. Damping in proportion to the residual: where no token is held by the bound,
        #    the common scale of all weights is free, and an undamped step all noise.
        relaxed = jnp.maximum(_RELAXED * state.damping, _OF_RESIDUAL * residual)
        damping = jnp.where(better, jnp.maximum(relaxed, _LEAST_DAMPING), state.damping)

        # 4. The next point. The step is most of the work, and the last one would not
        #    be taken.
        def stepped():
            step = newton_direction(race, curve, free, damping)
            step = jnp.clip(step, -self.max_step, self.max_step)
            return jnp.clip(trial + step, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)

        onward = jax.lax.cond(
            keep & (error > self.goal) & ~stalled,
            stepped,
            lambda: jnp.where(keep, trial, params),
        )
        next_state = NewtonState(
            iter_num=state.iter_num + 1,
            error=error,
            trial=onward,
            residual=jnp.where(better, residual, state.residual),
            damping=jnp.where(keep, damping, _TIGHTENED * damping),
            retry=~keep,
            stalled=stalled,
        )
        return OptStep(jnp.where(keep, trial, params), next_state)

    def optimality_fun(self, params: Array, race: Race) -> Array:
        """Zero at the solution."""
        return optimality(params, race)

    def _loop(self, params: Array, state: NewtonState, race: Race) -> OptStep:
        # jaxopt traces the first update apart from the loop; here state and update
        # have one type, so a single while_loop halves what is compiled. Jitted: the
        # nodes' constants would else be operands of the loop, and under `vmap` have
        # rows, which `in_rows` does not admit.
        update = jax.jit(self.update)

        @in_rows
        def loop(params, state, race):
            def unfinished(carry):
                _, state = carry
                wanted = (state.error > self.goal) & (state.damping < _HOPELESS)
                wanted = wanted & ~state.stalled
                return (state.iter_num < self.maxiter) & wanted

            def body(carry):
                return tuple(update(*carry, race))

            return jax.lax.while_loop(unfinished, body, (params, state))

        return OptStep(*loop(params, state, race))


def start_weights(race: Race, members: Array) -> Array:
    """Log-weights [k] to begin with: A outside H*, inside by a mean field.

    Of the drafts of token i that come with others from H*, the share
    r_i = p_i q(H*) / (n q_i Q(H*)) must be picked. Against others of total weight S
    that is w / (1 + w + S) = r_i, solved with their average weight if all were alike:
    n w / (1 + n w) = p(H*) / Q(H*). (One draft has no others: this is exact.)
    """
    p, q, n = race.p, race.q, race.num_drafts
    inside_p = jnp.sum(jnp.where(members, p, 0))
    inside_q = jnp.sum(jnp.where(members, q, 0))
    average = jnp.minimum(log_ratio(inside_p, n * race.excess), _LARGEST_AVERAGE)
    others = _OVERLOAD * (n - 1) * jnp.exp(average)
    share = log_ratio(p, q) - log_ratio(n * (inside_p + race.excess), inside_q)
    share = jnp.minimum(share, _LARGEST_LOG_SHARE)
    inside = jnp.log1p(others) + share - jnp.log(-jnp.expm1(share))
    inside = jnp.clip(inside, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)
    return jnp.where(members, inside, LOG_WEIGHT_BOUND)


def newton_direction(
    race: Race, curve: Curvature, free: Array, damping: Array
) -> Array:
    """Levenberg-damped Newton step on the free tokens: [k].

    The Hessian is diagonal plus low rank; its diagonal is scaled to 1.
    """
    diagonal = jnp.maximum(curve.diagonal, _LEAST_DIAGONAL * curve.pick)
    diagonal = diagonal + damping * curve.pick + _TINY
    root = jnp.where(free, jax.lax.rsqrt(diagonal), 0)
    gradient = jnp.where(free, race.p - curve.pick, 0) * root
    step = curve.solve_scaled(root, gradient)
    # A factorisation that rounding broke leaves the diagonal step.
    return jnp.where(jnp.all(jnp.isfinite(step)), step, gradient) * root
