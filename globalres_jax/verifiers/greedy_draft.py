"""The optimal rule for greedy drafts (Hu et al., arXiv 2502.18779), and SpecHub."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import TopPlusSample
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import Rule, accept_probability, take_drafted


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyDraft(Rule):
    """Single-draft sampling of the sampled draft x ~ r against p.

    A rejection draws from (p - r)_+, which is p itself on the fixed drafts: those
    count as accepted. Optimal for this law, in O(V).
    """

    serves = (TopPlusSample,)
    serves_trees = False

    def resolve(
        self, plan: tuple, p: Array, law: TopPlusSample, draft_tokens: Array
    ) -> Decision:
        """Decision from the last slot, then from the fixed ones."""
        proposal = law.proposal
        last = draft_tokens[-1]
        chance = accept_probability(p[last], proposal[last])
        chance = jnp.where(last >= 0, chance, 0)
        left = normalized_residual(jnp.maximum(p - proposal, 0), p)
        accept, left = take_drafted((1 - chance) * left, draft_tokens)
        return Decision(accept.at[-1].add(chance), left)

    def acceptance_rate(self, p: Array, law: TopPlusSample) -> Array:
        """P(D) + sum_{i not in D} min(p_i, r_i): []."""
        return jnp.sum(jnp.where(law.fixed, p, jnp.minimum(p, law.proposal)))
