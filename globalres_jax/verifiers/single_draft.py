"""Single-draft speculative sampling (Leviathan et al., arXiv 2211.17192)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID
from globalres_jax.probabilities import normalized_residual
from globalres_jax.verifiers.rule import Rule


def accept_probability(p: Array, q: Array) -> Array:
    """min(1, p / q), and 0 where a token cannot have been drafted."""
    return jnp.where(q > 0, jnp.minimum(1, p / jnp.where(q > 0, q, 1)), 0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleDraft(Rule):
    """Accept x with probability min(1, p(x) / q(x)), else draw from (p - q)_+.

    Optimal for one draft: it accepts with probability sum_i min(p_i, q_i).
    """

    serves = (IID,)

    def check(self, law: IID) -> None:
        """Raises TypeError for another law, ValueError for more than one draft."""
        super().check(law)
        if isinstance(law.num_drafts, int | np.integer) and law.num_drafts != 1:
            raise ValueError(
                f"num_drafts: SingleDraft verifies 1 draft, got {law.num_drafts}"
            )

    def resolve(self, plan: tuple, p: Array, law: IID, draft_tokens: Array) -> Decision:
        """Decision for the one slot in use."""
        q = law.probs
        ratio = accept_probability(p[draft_tokens], q[draft_tokens])
        accept = jnp.where(draft_tokens >= 0, ratio, 0)
        residual = normalized_residual(jnp.maximum(p - q, 0), p)
        return Decision(accept, (1 - jnp.sum(accept)) * residual)

    def acceptance_rate(self, p: Array, law: IID) -> Array:
        """sum_i min(p_i, q_i): []."""
        return jnp.sum(jnp.minimum(p, law.probs))
