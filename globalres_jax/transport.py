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
from globalres_jax.checks import as_distribution, same_vocabulary
from globalres_jax.draft_laws import IID
from globalres_jax.race import LOG_WEIGHT_BOUND, RaceProblem, pick_law
from globalres_jax.solvers import (
    LOG_WEIGHT_FLOOR,
    ProjectedNewton,
    RaceSolver,
    acceptance_gap,
)
from globalres_jax.subset_selection import optimal_subset


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
      iterations: [] int32, solver iterations.
    """

    weights: Array
    pick: Array
    acceptance_rate: Array
    upper_bound: Array
    gap: Array
    converged: Array
    iterations: Array


def solve_transport(
    p: Array, law: IID, solver: RaceSolver | None = None
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


def race_problem(p: Array, law: IID) -> tuple[RaceProblem, Array, Array]:
    """The problem on the tokens that can be drafted.

    Returns:
      The problem; a start [k]; the tokens [k] it speaks of (all V of them unless
      the law's `max_support` says that fewer have mass).
    """
    dtype = jnp.promote_types(p.dtype, law.probs.dtype)
    p, q = p.astype(dtype), law.probs.astype(dtype)
    vocab_size = p.shape[0]
    tokens = jnp.arange(vocab_size)
    idle = jnp.zeros((), dtype)
    if law.max_support is not None and law.max_support < vocab_size:
        q_kept, tokens = jax.lax.top_k(q, law.max_support)
        outside = jnp.ones(vocab_size, bool).at[tokens].set(False)
        idle = jnp.sum(jnp.where(outside, q, 0))
        p, q = p[tokens], q_kept
    num_drafts = jnp.asarray(law.num_drafts, dtype)
    excess, members = optimal_subset(p, q, num_drafts)
    problem = RaceProblem(p, q, idle, num_drafts, excess, missing=1 - jnp.sum(p))
    return problem, _start(problem, members), tokens


def _start(problem: RaceProblem, members: Array) -> Array:
    """A = A outside H*, log(p / q) inside (exact for one draft: log(p / (q - p)))."""
    p, q = problem.p, problem.q
    tiny = jnp.finfo(p.dtype).tiny
    rest = jnp.where(problem.num_drafts == 1, q - p, q)
    ratio = jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(rest, tiny))
    inside = jnp.clip(ratio, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)
    return jnp.where(members, inside, LOG_WEIGHT_BOUND)


@functools.partial(jax.jit, static_argnames="solver")
def _solve(p: Array, law: IID, solver: RaceSolver) -> TransportPlan:
    problem, start, tokens = race_problem(p, law)
    log_weights, state = solver.run(start, problem)
    weights = jnp.where(problem.p > 0, jnp.exp(log_weights), 0)
    pick = pick_law(problem, weights)
    rejected = jnp.sum(jnp.maximum(problem.p - pick, 0)) + problem.missing
    gap = jnp.maximum(acceptance_gap(problem, pick), 0)
    if tokens.shape[0] < p.shape[0]:
        empty = jnp.zeros(p.shape, weights.dtype)
        weights, pick = empty.at[tokens].set(weights), empty.at[tokens].set(pick)
    return TransportPlan(
        weights=weights,
        pick=pick,
        acceptance_rate=1 - rejected,
        upper_bound=1 - rejected + gap,
        gap=gap,
        converged=gap <= solver.tol,
        iterations=jnp.asarray(state.iter_num, jnp.int32),
    )
