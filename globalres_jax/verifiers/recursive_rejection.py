"""Recursive rejection sampling (SpecInfer, arXiv 2305.09781)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw, Independent, WithoutReplacement
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import Rule, accept_probability


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecursiveRejection(Rule):
    """Single-draft sampling against each draft in turn, from what is left of p.

    Start with p' = p. Draft x ~ q_j is accepted with probability
    min(1, p'(x) / q_j(x)); a rejection replaces p' by the normalised (p' - q_j)_+.
    A repeated draft is a draft: skipping it without this update would be biased.
    q_j is q for i.i.d. drafts, the drafter's own for different drafters, and without
    replacement q without the tokens drawn before, normalised (RSD, arXiv 2402.14160;
    Sequoia, arXiv 2402.12374). Where those exhaust q, Sequoia goes on uniformly over
    untried tokens, and our law with `NO_TOKEN`, which this rule passes over.
    """

    serves = (IID, Independent, WithoutReplacement)

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision by one pass over the slots."""
        dtype = jnp.promote_types(p.dtype, law.dtype)

        def judge(carry, slot):
            reach, rest, drawn = carry
            token, q = slot
            if isinstance(law, WithoutReplacement):
                q = jnp.where(drawn, 0, law.probs)
                total = jnp.sum(q)
                q = q / jnp.where(total > 0, total, 1)
                drawn = drawn | (jnp.arange(law.vocab_size) == token)
            elif isinstance(law, IID):
                q = law.probs
            in_use = token >= 0
            ratio = jnp.where(in_use, accept_probability(rest[token], q[token]), 0)
            left = normalized_residual(jnp.maximum(rest - q, 0), rest)
            rest = jnp.where(in_use, left, rest)
            return (reach * (1 - ratio), rest, drawn), reach * ratio

        rows = law.probs if isinstance(law, Independent) else None
        drawn = jnp.zeros(law.vocab_size, bool)
        init = jnp.ones((), dtype), p.astype(dtype), drawn
        (reach, rest, _), accept = jax.lax.scan(judge, init, (draft_tokens, rows))
        return Decision(accept, reach * rest)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """1 - prod_j (1 - sum_i min(p'_i, q_ji)), p' as it is at draft j: [].

        Not for drafts without replacement, where q_j depends on the draws before.
        """
        if isinstance(law, WithoutReplacement) and law.num_drafts > 1:
            return super().acceptance_rate(p, law)
        self.check(law)

        def judge(j, carry):
            reach, rest = carry
            q = law.probs[j] if isinstance(law, Independent) else law.probs
            accept = jnp.sum(jnp.minimum(rest, q))
            left = normalized_residual(jnp.maximum(rest - q, 0), rest)
            return reach * jnp.maximum(1 - accept, 0), left

        dtype = jnp.promote_types(p.dtype, law.dtype)
        init = (jnp.ones((), dtype), p.astype(dtype))
        return 1 - jax.lax.fori_loop(0, law.num_drafts, judge, init)[0]
