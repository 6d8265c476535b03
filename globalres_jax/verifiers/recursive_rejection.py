"""Recursive rejection sampling (SpecInfer, arXiv 2305.09781)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID
from globalres_jax.probabilities import normalized_residual
from globalres_jax.verifiers.rule import Rule
from globalres_jax.verifiers.single_draft import accept_probability


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecursiveRejection(Rule):
    """Single-draft sampling against each draft in turn, from what is left of p.

    Start with p' = p. Draft x is accepted with probability min(1, p'(x) / q(x)); a
    rejection replaces p' by the normalised (p' - q)_+. A repeated draft is a draft:
    skipping it without this update would be biased.
    """

    serves = (IID,)

    def resolve(self, plan: tuple, p: Array, law: IID, draft_tokens: Array) -> Decision:
        """Decision by one pass over the slots."""
        q = law.probs

        def judge(carry, token):
            reach, rest = carry
            in_use = token >= 0
            ratio = jnp.where(in_use, accept_probability(rest[token], q[token]), 0)
            left = normalized_residual(jnp.maximum(rest - q, 0), rest)
            rest = jnp.where(in_use, left, rest)
            return (reach * (1 - ratio), rest), reach * ratio

        dtype = jnp.promote_types(p.dtype, q.dtype)
        init = (jnp.ones((), dtype), p.astype(dtype))
        (reach, rest), accept = jax.lax.scan(judge, init, draft_tokens)
        return Decision(accept, reach * rest)

    def acceptance_rate(self, p: Array, law: IID) -> Array:
        """1 - prod_j (1 - sum_i min(p'_i, q_i)), p' as it is at draft j: []."""
        q = law.probs

        def judge(_, carry):
            reach, rest = carry
            accept = jnp.sum(jnp.minimum(rest, q))
            left = normalized_residual(jnp.maximum(rest - q, 0), rest)
            return reach * jnp.maximum(1 - accept, 0), left

        dtype = jnp.promote_types(p.dtype, q.dtype)
        init = (jnp.ones((), dtype), p.astype(dtype))
        return 1 - jax.lax.fori_loop(0, law.num_drafts, judge, init)[0]
