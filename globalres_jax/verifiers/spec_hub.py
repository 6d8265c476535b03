"""SpecHub (Sun et al., arXiv 2411.05289): two drafts, one of them the likeliest."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import TopPlusSample
from globalres_jax.numerics.quotient import quotient
from globalres_jax.verifiers.rule import Rule, accept_probability


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecHub(Rule):
    """Each pair {a, i} with the hub a = argmax q pays for i first, then for a.

    SpecHub draws (i, a) with probability q_i and (a, i) with q_a q_i / (1 - q_a),
    hence the set {a, i} with r_i = q_i / (1 - q_a): the law of `TopPlusSample` for
    two drafts. Of its mass, min(p_i, r_i) emits i; of what all pairs have left, p_a
    emits a, and the rest draws from (p - r)_+ off a. As a rule for that law it
    accepts as much as `GreedyDraft`, the optimum.
    """

    serves = (TopPlusSample,)

    def check(self, law: TopPlusSample) -> None:
        """Raises TypeError for another law, ValueError unless it draws two drafts."""
        super().check(law)
        if law.num_drafts != 2:
            raise ValueError(
                f"num_drafts: SpecHub verifies 2 drafts, got {law.num_drafts}"
            )

    def resolve(
        self, plan: tuple, p: Array, law: TopPlusSample, draft_tokens: Array
    ) -> Decision:
        """Decision from the mass of the drafted pair."""
        hub, proposal = law.top[0], law.proposal
        drawn = law.lookup(proposal, draft_tokens)
        # Of the pair only the sampled draft has r above zero.
        chance = accept_probability(p[draft_tokens], drawn)
        share = 1 - jnp.sum(chance)
        # What all pairs have left, as a sum of what lacks: p_a + sum (p - r)_+.
        lacking = jnp.maximum(p - law.spread(proposal), 0).at[hub].set(0)
        left = p[hub] + jnp.sum(lacking)
        to_hub = jnp.where(left > 0, quotient(p[hub], left), 1)
        accept = chance + share * jnp.where(draft_tokens == hub, to_hub, 0)
        return Decision(accept, share * quotient(lacking, left))

    def acceptance_rate(self, p: Array, law: TopPlusSample) -> Array:
        """p_a + sum_{i != a} min(p_i, r_i): []."""
        self.check(law)
        return p[law.top[0]] + jnp.sum(jnp.minimum(law.take(p), law.proposal))
