"""The optimal rule itself: weights, their pick law, a certificate, a derivative.

    p, law --solve_transport--> TransportPlan

A plan is found in one of three ways, all in this file:

  1. in closed form, where all drafts but one are fixed, or there is but one;
  2. i.i.d. drafts from 320 tokens or more: on pools of similar tokens, and only if that
     leaves too large a gap by tokens;
  3. else by tokens.

It is lossless whatever the solver did; how close to optimal it is, the certificate
says: `acceptance_rate <= alpha* <= upper_bound`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.draft_laws import IID, DraftLaw
from globalres_jax.draft_laws.closed_form import single_draft
from globalres_jax.numerics.rows import in_rows, known_platform
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport.derivatives import with_derivatives
from globalres_jax.transport.iid_race import IIDRace, iid_race
from globalres_jax.transport.jaxopt_interface import OptStep
from globalres_jax.transport.law_race import law_race
from globalres_jax.transport.newton import ProjectedNewton, start_weights
from globalres_jax.transport.pooled_race import PoolSolver, solve_pooled
from globalres_jax.transport.race import (
    Race,
    acceptance_gap,
    race_weights,
    rejection_rate,
)
from globalres_jax.transport.subset_selection import best_prefix
from globalres_jax.validation import as_distribution, same_vocabulary

#: Races of fewer tokens are solved without pools, of which there are 160.
POOLED_FROM = 320


class RaceSolver(Protocol):
    """What `solve_transport` asks of a solver (hashable, equal when alike).

    Attributes:
      tol: acceptance gap at which a plan counts as converged.
    """

    tol: float

    def run(self, init_params: Array, race: Race) -> OptStep:
        """Log-weights [k] from `init_params [k]`, and a state with `iter_num`."""
        ...

    def on_pools(self) -> PoolSolver | None:
        """The solver for the pools of a large race; None if it wants none.

        One that has such a solver also has `enough`, the gap that needs no more work,
        and `resume(params, race, error, iterations)`, which goes on by tokens.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransportPlan:
    """Weights of the race, the law of its picks, and how good they are.

    It holds the k tokens that the law can draw. All fields may have leading axes.

    Attributes:
      tokens: [k] these tokens; None if they are all V, in their order.
      token_weights: [k] weight of each; zero where it can never be emitted.
      token_pick: [k] beta, the probability that each is picked.
      acceptance_rate: [] achieved, sum_i min(beta_i, p_i).
      upper_bound: [] no lossless rule accepts more often than this.
      gap: [] upper_bound - acceptance_rate, from small numbers, so in float32 more
        exact than their difference.
      converged: [] bool, gap within the solver's tolerance.
      iterations: [] int32, solver iterations; 0 where none was needed.
      vocab_size: V.
    """

    tokens: Array | None
    token_weights: Array
    token_pick: Array
    acceptance_rate: Array
    upper_bound: Array
    gap: Array
    converged: Array
    iterations: Array
    vocab_size: int = dataclasses.field(metadata={"static": True})

    @property
    def weights(self) -> Array:
        """[V] weight of each token of the vocabulary; zero beyond the law's."""
        return self._dense(self.token_weights)

    @property
    def pick(self) -> Array:
        """[V] beta of each token of the vocabulary; zero beyond the law's."""
        return self._dense(self.token_pick)

    def _dense(self, values: Array) -> Array:
        if self.tokens is None:
            return values

        def spread(values: Array, tokens: Array) -> Array:
            at = jnp.zeros(self.vocab_size, values.dtype).at[tokens]
            return at.set(values, mode="promise_in_bounds", unique_indices=True)

        for _ in range(values.ndim - 1):
            spread = jax.vmap(spread)
        return spread(values, self.tokens)


def solve_transport(
    p: Array, law: DraftLaw, solver: RaceSolver | None = None
) -> TransportPlan:
    """Finds the optimal multi-draft verification rule for target `p`.

    Differentiable in `p` and the law's probabilities, in reverse mode: the derivative
    is that of the exact solution, taken at the one that was found. A weight at either
    bound stays there, and so does one of a token with p_i = 0 or q_i = 0; where a
    weight is about to leave its bound, this is the derivative from the bound's side.
    The smaller of beta_i and p_i moves with the mean of both where they are equal.

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
    solver = ProjectedNewton() if solver is None else solver
    return _solve(p, law, solver, known_platform())


def optimal_acceptance_rate(p: Array, law: DraftLaw) -> Array:
    """Largest acceptance rate of any lossless rule: min over H of p(H) + 1 - Q(H).

    One sort of the law's k tokens; for two or more different drafters the transport
    problem is solved, and this is its upper bound.

    Args:
      p: [V] target distribution.
      law: draft law over the same V tokens.

    Returns:
      [] acceptance rate in [0, 1]. Differentiable: the best set H holds still while p
      and q move (envelope theorem), so d/dp_i = 1 for i in H. The rate is concave in p;
      where several sets are best, as at p = q, this is the supergradient of the one
      that is found, the smallest up to rounding.

    Raises:
      ValueError: `p` is no distribution or the vocabularies differ.
    """
    p = as_distribution("p", p, allow_deficit=True)
    same_vocabulary(p, law)
    own = law.take(p)
    if law.prefix_is_optimal:
        order = law.subset_order(own)
    else:
        plan = solve_transport(*jax.lax.stop_gradient((p, law)))
        order = jnp.argsort(plan.token_weights)
    missing = 1 - blockwise_sum(own)
    prefix = best_prefix(own[order], law.escape(order), missing).members
    members = jnp.zeros(own.shape, bool).at[order].set(prefix)
    members = jax.lax.stop_gradient(members)
    rate = jnp.sum(jnp.where(members, own, 0)) + 1 - law.containment(members)
    # Not a minimum, whose derivative at 1 would be but a half of this.
    return jnp.where(rate > 1, 1, rate)


class _Solution(NamedTuple):
    """A solved race: [k] weights and pick law, [] excess and iterations."""

    weights: Array
    pick: Array
    excess: Array
    iterations: Array


@functools.partial(jax.jit, static_argnames=("solver", "platform"))
def _solve(
    p: Array, law: DraftLaw, solver: RaceSolver, platform: str | None
) -> TransportPlan:
    """The plan: a solution on the law's tokens, and its certificate."""
    del platform  # known to all inside; here so that it is known to `jit`
    dtype = jnp.promote_types(p.dtype, law.dtype)
    own = law.take(p.astype(dtype))
    solution = _solution(own, _widened(law, dtype), solver)
    rejected = rejection_rate(own, solution.pick, 1 - blockwise_sum(own))
    # Rounding may leave the race a little better than the best of all rules; a race
    # that is better by more than that is not to be trusted.
    found = rejected - solution.excess
    gap = jnp.maximum(found, 0)
    return TransportPlan(
        tokens=law.tokens,
        token_weights=solution.weights,
        token_pick=solution.pick,
        acceptance_rate=1 - rejected,
        upper_bound=1 - rejected + gap,
        gap=gap,
        converged=jnp.abs(found) <= solver.tol,
        iterations=solution.iterations,
        vocab_size=law.vocab_size,
    )


def _widened(law: DraftLaw, dtype) -> DraftLaw:
    """The law with its probabilities in `dtype`."""

    def widen(leaf: Array) -> Array:
        is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_floating else leaf

    return jax.tree.map(widen, law)


def _solution(p: Array, law: DraftLaw, solver: RaceSolver) -> _Solution:
    """The solution for `p [k]`: in closed form, or of a race."""
    closed = law.closed_form(p)
    if closed is not None:
        return _Solution(*closed, jnp.zeros((), jnp.int32))
    if not isinstance(law, IID):
        return _raced(*law_race(p, law), solver)
    num_drafts = jnp.asarray(law.num_drafts, p.dtype)

    def raced() -> _Solution:
        missing = 1 - blockwise_sum(p)
        race = iid_race(p, law.token_probs, num_drafts, missing)
        return _raced(*race, solver)

    def one_draft() -> _Solution:
        return _Solution(*single_draft(p, law.token_probs), jnp.zeros((), jnp.int32))

    # In a token tree the number is data, and most often it is 1.
    return raced() if law.is_fixed else jax.lax.cond(num_drafts > 1, raced, one_draft)


def _raced(race: Race, members: Array, solver: RaceSolver) -> _Solution:
    """The solution of a race, with its derivatives; `members [k]` is H*."""
    known, known_members = jax.lax.stop_gradient((race, members))
    log_weights, pick, iterations = _search(known, known_members, solver)
    weights, pick = with_derivatives(race, log_weights, pick)
    return _Solution(weights, pick, race.best_excess(log_weights), iterations)


def _search(
    race: Race, members: Array, solver: RaceSolver
) -> tuple[Array, Array, Array]:
    """Log-weights [k], pick law [k] and iterations []; `members [k]` is H*."""
    on_pools = solver.on_pools()
    poolable = isinstance(race, IIDRace) and len(race.p) >= POOLED_FROM
    if poolable and on_pools is not None:
        search = functools.partial(_by_pools_then_tokens, solver, on_pools)
    else:
        search = functools.partial(_by_tokens, solver)
    # In rows, so that on a CPU none waits for another's iterations, and only those
    # that need it take the way by tokens.
    return in_rows(search)(race, members)


def _by_tokens(
    solver: RaceSolver, race: Race, members: Array
) -> tuple[Array, Array, Array]:
    """Log-weights [k], pick law [k] and iterations [] of any race."""
    params, state = solver.run(start_weights(race, members), race)
    pick = race.pick_law(race_weights(race, params))
    return params, pick, jnp.asarray(state.iter_num, jnp.int32)


def _by_pools_then_tokens(
    solver: RaceSolver, on_pools: PoolSolver, race: IIDRace, members: Array
) -> tuple[Array, Array, Array]:
    """Log-weights [k], pick law [k] and iterations [] of a large i.i.d. race."""
    del members  # the pools find their own
    found, iterations = solve_pooled(race, on_pools)
    enough = found.gap <= solver.enough

    def by_tokens():
        # Zero: where rows run together, those that are done take no step.
        error = jnp.where(enough, 0, found.gap)
        params, state = solver.resume(found.log_weights, race, error, iterations)
        pick = race.pick_law(race_weights(race, params))
        # Float32 may be exhausted: what the pools gave is not always improved on.
        better = acceptance_gap(race, params, pick) < found.gap
        better = better | ~jnp.isfinite(found.gap)
        return (
            jnp.where(better, params, found.log_weights),
            jnp.where(better, pick, found.pick),
            state.iter_num,
        )

    as_found = found.log_weights, found.pick, iterations
    return jax.lax.cond(enough, lambda: as_found, by_tokens)
