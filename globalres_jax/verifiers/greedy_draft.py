"""The optimal rule for greedy drafts (Hu et al., arXiv 2502.18779)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import TopPlusSample
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import (
    Rule,
    accept_probability,
    rejected,
    take_drafted,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyDraft(Rule):
    """Single-draft sampling of the sampled draft x ~ r against p.

    A rejection draws from (p - r)_+, which is p itself on the fixed drafts: those
    count as accepted. Optimal for this law, in O(V).
    """

    serves = (TopPlusSample,)

    def resolve(
        self, plan: tuple, p: Array, law: TopPlusSample, draft_tokens: Array
    ) -> Decision:
        """Decision from the sampled draft, then from the fixed ones."""
        proposal = law.proposal
        # Of the drafts only the sampled one has r above zero.
        drawn = law.lookup(proposal, draft_tokens)
        chance = accept_probability(p[draft_tokens], drawn)
        left = normalized_residual(jnp.maximum(p - law.spread(proposal), 0), p)
        accept, left = take_drafted(rejected(chance) * left, draft_tokens)
        return Decision(accept + chance, left)

    def acceptance_rate(self, p: Array, law: TopPlusSample) -> Array:
        """p(D) + sum_{i not in D} min(p_i, r_i): []."""
        p = law.take(p)
        return jnp.sum(jnp.where(law.fixed, p, jnp.minimum(p, law.proposal)))
