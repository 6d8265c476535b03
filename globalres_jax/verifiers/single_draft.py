"""Single-draft speculative sampling (Leviathan et al., arXiv 2211.17192)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw, Independent, WithoutReplacement
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import Rule, accept_probability, first_law


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleDraft(Rule):
    """Accept x with probability min(1, p(x) / q(x)), else draw from (p - q)_+.

    Optimal for one draft: it accepts with probability sum_i min(p_i, q_i).
    """

    serves = (IID, Independent, WithoutReplacement)

    def check(self, law: DraftLaw) -> None:
        """Raises TypeError for another law, ValueError for more than one draft."""
        super().check(law)
        if isinstance(law.num_drafts, int | np.integer) and law.num_drafts != 1:
            raise ValueError(
                f"num_drafts: SingleDraft verifies 1 draft, got {law.num_drafts}"
            )

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision for the one slot in use."""
        q = first_law(law)
        ratio = accept_probability(p[draft_tokens], q[draft_tokens])
        accept = jnp.where(draft_tokens >= 0, ratio, 0)
        residual = normalized_residual(jnp.maximum(p - q, 0), p)
        return Decision(accept, (1 - jnp.sum(accept)) * residual)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(p_i, q_i): []."""
        return jnp.sum(jnp.minimum(p, first_law(law)))
