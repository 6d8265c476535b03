"""SpecHub (Sun et al., arXiv 2411.05289): two drafts, one of them the likeliest."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import TopPlusSample
from globalres_jax.numerics.quotient import quotient
from globalres_jax.verifiers.rule import Rule, accept_probability, rejected


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
        # A draft that says nothing proposes nothing.
        hub, proposal = law.top[0], jnp.where(law.proposal > 0, law.proposal, 0)
        drawn = law.lookup(proposal, draft_tokens)
        # Of the pair only the sampled draft has r above zero.
        chance = accept_probability(p[draft_tokens], drawn)
        share = rejected(chance)
        # What all pairs have left, as a sum of what lacks: p_a + sum (p - r)_+. Where
        # there is no hub, its slot is one beyond the vocabulary.
        of_hub, slot = _of_hub(p, hub), jnp.where(hub >= 0, hub, len(p))
        lacking = jnp.maximum(p - law.spread(proposal), 0)
        lacking = lacking.at[slot].set(0, mode="drop")
        left = of_hub + jnp.sum(lacking)
        to_hub = jnp.where(left > 0, quotient(of_hub, left), 1)
        accept = chance + share * jnp.where(draft_tokens == slot, to_hub, 0)
        return Decision(accept, share * quotient(lacking, left))

    def acceptance_rate(self, p: Array, law: TopPlusSample) -> Array:
        """p_a + sum_{i != a} min(p_i, r_i): []."""
        self.check(law)
        return _of_hub(p, law.top[0]) + jnp.sum(jnp.minimum(law.take(p), law.proposal))


def _of_hub(p: Array, hub: Array) -> Array:
    """Target probability of the hub: [], 0 where it is `NO_TOKEN`."""
    return jnp.where(hub >= 0, p[hub], 0)
