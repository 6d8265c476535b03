"""Single-draft speculative sampling (Leviathan et al., arXiv 2211.17192)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import DraftLaw
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import Rule, accept_probability, rejected


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleDraft(Rule):
    """Accept x with probability min(1, p(x) / q(x)), else draw from (p - q)_+.

    Serves every law of one draft, and is optimal there: it accepts with probability
    sum_i min(p_i, q_i).
    """

    serves = (DraftLaw,)

    def check(self, law: DraftLaw) -> None:
        """Raises TypeError for no law, ValueError if there may be more than a draft."""
        super().check(law)
        if law.max_drafts != 1:
            raise ValueError(
                f"num_drafts: SingleDraft verifies 1 draft, got {law.num_drafts}"
            )

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision for the one slot in use."""
        drawn = law.lookup(law.first, draft_tokens)
        accept = accept_probability(p[draft_tokens], drawn)
        left = jnp.maximum(p - law.spread(law.first), 0)
        residual = normalized_residual(left, p)
        return Decision(accept, rejected(accept) * residual)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(p_i, q_i): []."""
        return jnp.sum(jnp.minimum(law.take(p), law.first))
