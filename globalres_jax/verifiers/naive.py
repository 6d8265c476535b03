"""The rule that looks at the first draft only, and takes others by luck."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import (
    IID,
    Deterministic,
    DraftLaw,
    Independent,
    WithoutReplacement,
)
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import Rule, accept_probability, take_drafted


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Naive(Rule):
    """Single-draft sampling against the first draft.

    A residual token that was drafted in another slot counts as accepted. Lossless
    under any joint law whose `first` is the law of the first draft.
    """

    serves = (IID, Independent, WithoutReplacement, Deterministic)

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision from the first slot in use, then from the others."""
        q = law.first
        slot = jnp.argmax(draft_tokens >= 0)
        token = draft_tokens[slot]
        chance = accept_probability(p[token], law.lookup(q, token[None])[0])
        left = normalized_residual(jnp.maximum(p - law.spread(q), 0), p)
        accept, left = take_drafted((1 - chance) * left, draft_tokens)
        return Decision(accept.at[slot].add(chance), left)

    def has_acceptance_rate(self, law: DraftLaw) -> bool:
        """Not without replacement, where later drafts depend on the first."""
        return not isinstance(law, WithoutReplacement) or law.num_drafts == 1

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(p_i, q_i) + (p_i - q_i)_+ Pr[i is drafted later]: []."""
        if not self.has_acceptance_rate(law):
            return super().acceptance_rate(p, law)
        p, q = law.take(p), law.first
        if law.joins:
            later = one_minus_power(q, law.num_drafts - 1)
        elif law.num_drafts == 1:
            later = jnp.zeros_like(q)
        elif isinstance(law, Deterministic):
            later = 1 - q
        else:
            later = 1 - jnp.prod(1 - law.token_probs[1:], axis=0)
        return jnp.sum(jnp.minimum(p, q) + jnp.maximum(p - q, 0) * later)
