"""The rule that looks at the first draft only, and takes others by luck."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw, Independent, WithoutReplacement
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import (
    Rule,
    accept_probability,
    first_law,
    take_drafted,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Naive(Rule):
    """Single-draft sampling against the first draft.

    A residual token that was drafted in another slot counts as accepted. Lossless
    under any joint law in which the first draft is drawn from q.
    """

    serves = (IID, Independent, WithoutReplacement)

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision from the first slot in use, then from the others."""
        q = first_law(law)
        first = jnp.argmax(draft_tokens >= 0)
        token = draft_tokens[first]
        chance = jnp.where(token >= 0, accept_probability(p[token], q[token]), 0)
        left = (1 - chance) * normalized_residual(jnp.maximum(p - q, 0), p)
        accept, left = take_drafted(left, draft_tokens)
        return Decision(accept.at[first].add(chance), left)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(p_i, q_i) + (p_i - q_i)_+ Pr[i is drafted later]: [].

        Not for drafts without replacement, where later ones depend on the first.
        """
        q = first_law(law)
        if isinstance(law, Independent):
            absent = jnp.prod(1 - law.probs[1:], axis=0)
        elif isinstance(law, IID):
            absent = 1 - one_minus_power(q, law.num_drafts - 1)
        elif law.num_drafts == 1:
            absent = jnp.ones_like(q)
        else:
            return super().acceptance_rate(p, law)
        return jnp.sum(jnp.minimum(p, q) + jnp.maximum(p - q, 0) * (1 - absent))
