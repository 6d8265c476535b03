"""The optimal rule itself: weights, their pick law, and a certificate.

    p, law --solve_transport--> TransportPlan

The plan is lossless whatever the solver did; how close to optimal it is, the
certificate says: `acceptance_rate <= alpha* <= upper_bound`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.validation import as_distribution, same_vocabulary
from globalres_jax.draft_laws import IID, DraftLaw
from globalres_jax.transport.law_race import LawProblem
from globalres_jax.transport.newton import start_weights
from globalres_jax.transport.iid_race import (
    RaceProblem,
    as_pick_law,
    optimal_excess,
    pick_law,
    race_weights,
    rejection_rate,
)
from globalres_jax.transport.solvers import ProjectedNewton, RaceSolver
from globalres_jax.transport.subset_selection import best_prefix, optimal_threshold
from globalres_jax.numerics.sums import blockwise_sum


class TransportPlan(NamedTuple):
    """Weights of the race, the law of its picks, and how good they are.

    Attributes:
      weights: [V] weight of each token; zero where it can never be emitted.
      pick: [V] beta, the probability that each token is picked.
      acceptance_rate: [] achieved, sum_i min(beta_i, p_i).
      upper_bound: [] no lossless rule accepts more often than this.
      gap: [] upper_bound - acceptance_rate, from small numbers, so in float32 more
        exact than their difference.
      converged: [] bool, gap within the solver's tolerance.
      iterations: [] int32, solver iterations; 0 where none was needed.
    """

    weights: Array
    pick: Array
    acceptance_rate: Array
    upper_bound: Array
    gap: Array
    converged: Array
    iterations: Array
    token_weights: Array
    token_pick: Array


def solve_transport(
    p: Array, law: DraftLaw, solver: RaceSolver | None = None
) -> TransportPlan:
    """Finds the optimal multi-draft verification rule for target `p`.

    Args:
      p: [V] target distribution, float32 or wider.
      law: draft law over the same V tokens.
      solver: `ProjectedNewton()` if None; `BoxLBFGS()` is the other one.

    Returns:
      A `TransportPlan`. A problem that was not solved to the solver's tolerance
      has `converged = False`, and is still lossless.

    Raises:
      ValueError: `p` is no distribution or the vocabularies differ.
    """
    p = as_distribution("p", p, allow_deficit=True)
    same_vocabulary(p, law)
    return _solve(p, law, ProjectedNewton() if solver is None else solver)


def race_problem(
    p: Array, q: Array, num_drafts: Array
) -> tuple[RaceProblem, Array]:
    """The race of i.i.d. drafts, and log-weights [V] to start from.

    Args:
      p: [V] target probabilities.
      q: [V] draft probabilities.
      num_drafts: [] n.
    """
    missing = 1 - blockwise_sum(p)
    best = optimal_threshold(p, q, num_drafts, missing)
    problem = RaceProblem(p, q, num_drafts, best.excess, missing)
    start = start_weights(problem, best.members)
    return problem, jax.lax.stop_gradient(start)


class _Race(NamedTuple):
    """A solved race: [V] weights and pick law, [] excess and iterations."""

    weights: Array
    pick: Array
    excess: Array
    iterations: Array


@functools.partial(jax.jit, static_argnames="solver")
def _solve(p: Array, law: DraftLaw, solver: RaceSolver) -> TransportPlan:
    dtype = jnp.promote_types(p.dtype, law.dtype)
    p = p.astype(dtype)
    inside = law.take(p)
    race = _race_of(inside, law, solver)
    rejected = rejection_rate(inside, race.pick, 1 - blockwise_sum(inside))
    gap = jnp.maximum(rejected - race.excess, 0)
    return TransportPlan(
        weights=law.spread(race.weights),
        pick=law.spread(race.pick),
        acceptance_rate=1 - rejected,
        upper_bound=1 - rejected + gap,
        gap=gap,
        converged=gap <= solver.tol,
        iterations=race.iterations,
        token_weights=race.weights,
        token_pick=race.pick,
    )


def _race_of(p: Array, law: DraftLaw, solver: RaceSolver) -> _Race:
    """The race for `p [k]`, on the tokens that the law can draw."""
    law = jax.tree.map(lambda x: _widened(x, p.dtype), law)
    if isinstance(law, IID):
        return _race(p, law, solver)
    solved = law.closed_form(p)
    if solved is not None:
        return _Race(*solved, jnp.zeros((), jnp.int32))
    return _law_race(p, law, solver)


def _widened(leaf: Array, dtype) -> Array:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _law_race(p: Array, law: DraftLaw, solver: RaceSolver) -> _Race:
    """A race whose law is known by its moments."""
    problem, start = law_problem(p, law)
    log_weights, state = solver.run(start, problem)
    weights = race_weights(problem, log_weights)
    return _Race(
        weights,
        pick_law(problem, weights),
        optimal_excess(problem, log_weights),
        jnp.asarray(state.iter_num, jnp.int32),
    )


def law_problem(p: Array, law: DraftLaw) -> tuple[LawProblem, Array]:
    """The race for `p [V]` and any law, and log-weights [V] to start from."""
    missing = 1 - blockwise_sum(p)
    order = law.subset_order(p)
    excess, members = best_prefix(p[order], law.escape(order), missing)
    members = jnp.zeros(p.shape, bool).at[order].set(members)
    marginal = law.moments(jnp.ones((1, p.shape[0]), p.dtype)).mean[0]
    problem = LawProblem(p, marginal / law.num_drafts, law, excess, missing)
    start = start_weights(problem, members)
    return problem, jax.lax.stop_gradient(start)


def optimal_acceptance_rate(p: Array, law: DraftLaw) -> Array:
    """Largest acceptance rate of any lossless rule: min over H of p(H) + 1 - Q(H).

    One sort for most laws; for two or more different drafters the transport problem
    is solved, and this is its upper bound.

    Args:
      p: [V] target distribution.
      law: draft law over the same V tokens.

    Returns:
      [] acceptance rate in [0, 1]. Differentiable: the gradient is the envelope
      theorem's.

    Raises:
      ValueError: `p` is no distribution or the vocabularies differ.
    """
    p = as_distribution("p", p, allow_deficit=True)
    same_vocabulary(p, law)
    if law.prefix_is_optimal:
        order = law.subset_order(law.take(p))
    else:
        plan = jax.lax.stop_gradient(solve_transport(p, law))
        order = jnp.argsort(law.take(plan.weights))
    p = law.take(p)
    prefix = best_prefix(p[order], law.escape(order), 1 - blockwise_sum(p)).members
    members = jnp.zeros(p.shape, bool).at[order].set(prefix)
    members = jax.lax.stop_gradient(members)
    return jnp.minimum(
        jnp.sum(jnp.where(members, p, 0)) + 1 - law.containment(members), 1
    )


def _race(p: Array, law: IID, solver: RaceSolver) -> _Race:
    num_drafts = jnp.asarray(law.num_drafts, p.dtype)
    problem, start = race_problem(p, law.token_probs, num_drafts)
    log_weights, pick, iterations = solver.solve(start, problem)
    weights = race_weights(problem, log_weights)
    pick = as_pick_law(pick, problem, weights)
    return _Race(weights, pick, problem.excess, iterations)
