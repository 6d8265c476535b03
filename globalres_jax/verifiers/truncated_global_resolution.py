"""Global Resolution as published (Thomas & Pal, arXiv 2511.15898): the baseline.

Complementary slackness splits the transport problem at the optimal subset H*: a tuple
of drafts that reaches outside H* always accepts one of its outer tokens (outer
system), a tuple inside H* accepts one of its own or none (inner system). Each is a
convex problem over tuples, truncated to the fewest tokens T that leave out at most
tau, and minimised by L-BFGS-B. Within caps on tuples and iterations; past them it
fails, and says so. Lossless up to an L1 error of 15 tau, optimal up to 10 tau.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID
from globalres_jax.draft_laws.law import ratio_order
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond
from globalres_jax.transforms import normalized_residual
from globalres_jax.transport.subset_selection import best_prefix
from globalres_jax.verifiers.rule import (
    Rule,
    check_most_drafts,
    first_of_each,
    outside_law,
    rejected,
    take_drafted,
)
from globalres_jax.verifiers.target_sample import TargetSample
from globalres_jax.verifiers.truncated_systems import (
    Caps,
    System,
    outer_residuals,
    solve_systems,
)


class TruncatedPlan(NamedTuple):
    """Solution of the outer and the inner system, on the law's tokens.

    Attributes:
      outside: [k] bool, tokens outside H*.
      kept: [k] bool, tokens of the truncated systems.
      log_weights: [k] parameters of both systems, 0 where not kept.
      token_residual: [k] what the law's tokens leave of p, not normalised; of any
        other token p is left.
      acceptance_rate: [] achieved, over the tuples that were kept.
      upper_bound: [] optimal acceptance rate.
      converged: [] bool; False where the method fails.
      iterations: [] of both minimisations together.
    """

    outside: Array
    kept: Array
    log_weights: Array
    token_residual: Array
    acceptance_rate: Array
    upper_bound: Array
    converged: Array
    iterations: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedGlobalResolution(Rule):
    """The paper's own solver and rule.

    A plan that failed decides by target sampling (draw y from p, accept it if it was
    drafted), which is exactly lossless. Where the number of drafts is data there is a
    program for each number up to the law's `max_drafts`, and one of them runs.

    Attributes:
      tau: largest probability of the tuples left out of either system.
      max_tuples: cap on enumerated multisets; with n, it caps the tokens kept.
      maxiter: cap on L-BFGS-B iterations of each system.
    """

    tau: float = 1e-3
    max_tuples: int = 20_000
    maxiter: int = 200

    serves = (IID,)

    def check(self, law: IID) -> None:
        """Raises TypeError for another law, ValueError if n has no known bound."""
        super().check(law)
        check_most_drafts(self, law, "enumerates tuples")

    def prepare(self, p: Array, law: IID) -> TruncatedPlan:
        """Solves both systems."""
        self.check(law)
        caps = Caps(self.tau, self.max_tuples, self.maxiter)
        wanted, q = law.take(p), law.first
        if law.is_fixed:
            return _plan(wanted, q, int(law.num_drafts), caps)
        plans = [
            functools.partial(_plan, num_drafts=n, caps=caps)
            for n in range(1, law.max_drafts + 1)
        ]
        return jax.lax.switch(law.num_drafts - 1, plans, wanted, q)

    def resolve(
        self, plan: TruncatedPlan, p: Array, law: IID, draft_tokens: Array
    ) -> Decision:
        """Decision from the system that the drafts belong to."""
        outside = law.lookup(plan.outside.astype(p.dtype), draft_tokens) > 0
        kept = law.lookup(plan.kept.astype(p.dtype), draft_tokens) > 0
        outer = jnp.any(outside)
        relevant = jnp.where(outer, outside, draft_tokens >= 0)
        candidate = first_of_each(draft_tokens) & relevant & kept
        parameters = law.lookup(plan.log_weights, draft_tokens)
        weights = jnp.where(candidate, jnp.exp(parameters), 0)
        # Outer tuples have no reject slot; those that truncation emptied reject.
        total = jnp.sum(weights) + jnp.where(outer, 0, 1)
        accept = weights / jnp.where(total > 0, total, 1)
        left = law.spread(plan.token_residual) + outside_law(p, law)
        residual = rejected(accept) * normalized_residual(left, p)

        sampled, rest = take_drafted(p, draft_tokens)
        ok = plan.converged
        return Decision(jnp.where(ok, accept, sampled), jnp.where(ok, residual, rest))

    def acceptance_rate(self, p: Array, law: IID) -> Array:
        """Mass of the kept tuples that accept a draft; target sampling on failure."""
        plan = self.prepare(p, law)
        fallback = TargetSample().acceptance_rate(p, law)
        return jnp.where(plan.converged, plan.acceptance_rate, fallback)


@functools.partial(jax.jit, static_argnames=("num_drafts", "caps"))
def _plan(p: Array, q: Array, num_drafts: int, caps: Caps) -> TruncatedPlan:
    """The plan for the law's tokens: p [k], q [k]."""
    dtype = jnp.promote_types(p.dtype, q.dtype)
    p, q = p.astype(dtype), q.astype(dtype)
    # 1. H* by one sort.
    order = ratio_order(p, q)
    sorted_p, sorted_q = p[order], q[order]
    escape = one_minus_power(mass_beyond(sorted_q), num_drafts)
    prefix = best_prefix(sorted_p, escape, 1 - blockwise_sum(p))
    outside = jnp.zeros(p.shape, bool).at[order].set(~prefix.members)

    # 2. What the outer tokens are to accept.
    before = jnp.zeros(1, dtype)
    psi = jnp.concatenate([before, jnp.cumsum(sorted_p)])
    psi = psi - jnp.concatenate([before, jnp.cumsum(sorted_q)]) ** num_drafts
    given_up = jnp.zeros_like(p).at[order].set(outer_residuals(psi))
    outer_wanted = jnp.where(outside, jnp.maximum(p - given_up, 0), 0)

    # 3. The two systems. Inside H*, tokens that p lacks are the null symbol.
    inside_q = jnp.sum(jnp.where(outside, 0, q))
    lacking_q = jnp.sum(jnp.where(~outside & (p == 0), q, 0))
    outer = System(outer_wanted, outside, inside_q, jnp.array(False))
    inner = System(p, ~outside & (p > 0), lacking_q, jnp.array(True))
    both = jax.tree.map(lambda x, y: jnp.stack([x, y]), outer, inner)
    solved = solve_systems(both, q, num_drafts, caps)
    tokens = solved.tokens.ravel()
    kept = jnp.zeros(p.shape, bool).at[tokens].set(True, mode="drop")
    weights = jnp.zeros_like(p).at[tokens].set(solved.log_weights.ravel(), mode="drop")
    return TruncatedPlan(
        outside=outside,
        kept=kept,
        log_weights=weights,
        token_residual=jnp.where(outside, jnp.maximum(p - outer_wanted, 0), 0),
        acceptance_rate=jnp.sum(solved.accepted),
        upper_bound=1 - prefix.excess,
        converged=jnp.all(solved.converged),
        iterations=jnp.sum(solved.iterations),
    )
