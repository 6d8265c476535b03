"""The optimal multi-draft rule (Thomas & Pal, arXiv 2511.15898), in race form."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import DraftLaw
from globalres_jax.transforms import normalized_residual
from globalres_jax.transport.newton import ProjectedNewton
from globalres_jax.transport.plan import RaceSolver, TransportPlan, solve_transport
from globalres_jax.verifiers.rule import Rule, accept_probability, rejected


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalResolution(Rule):
    """Pick a draft in proportion to optimal weights, then accept it against beta.

    1. Pick slot j with probability w[x_j] / (1 + sum_k w[x_k]), else reject.
    2. Emit the picked token i with probability min(1, p_i / beta_i).
    3. Otherwise draw from the normalised p - min(beta, p).

    Lossless for every w, since beta is the law of what step 1 picks; with the
    weights of `solve_transport` no lossless rule accepts more often.

    Attributes:
      solver: how the weights are found.
    """

    solver: RaceSolver = ProjectedNewton()

    serves = (DraftLaw,)

    def prepare(self, p: Array, law: DraftLaw) -> TransportPlan:
        """Solves the transport problem."""
        return solve_transport(p, law, self.solver)

    def resolve(
        self, plan: TransportPlan, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision from the plan's weights and pick law."""
        weights = law.lookup(plan.token_weights, draft_tokens)
        picked = weights / (1 + jnp.sum(weights))
        pick = law.lookup(plan.token_pick, draft_tokens)
        accept = picked * accept_probability(p[draft_tokens], pick)
        left = jnp.maximum(p - law.spread(plan.token_pick), 0)
        residual = normalized_residual(left, p)
        return Decision(accept, rejected(accept) * residual)

    def optimum(self, plan: TransportPlan) -> Array:
        """The plan's own upper bound: []."""
        return plan.upper_bound

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(beta_i, p_i): []."""
        return self.prepare(p, law).acceptance_rate
