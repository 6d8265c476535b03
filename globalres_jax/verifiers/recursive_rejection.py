"""Recursive rejection sampling (SpecInfer, arXiv 2305.09781)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

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
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.verifiers.rule import Rule, accept_probability, outside_law


class _Rest(NamedTuple):
    """What is left of p, not normalised outside the law's tokens.

    Attributes:
      inside: [k] p' of the law's tokens.
      scale: [] p' of any other token is this times p.
    """

    inside: Array
    scale: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecursiveRejection(Rule):
    """Single-draft sampling against each draft in turn, from what is left of p.

    Start with p' = p. Draft x ~ q_j is accepted with probability
    min(1, p'(x) / q_j(x)); a rejection replaces p' by the normalised (p' - q_j)_+.
    A repeated draft is a draft: skipping it without this update would be biased.
    q_j is the law of draft j given the ones before it: q for i.i.d. drafts, the
    drafter's own for different drafters, the token itself where it is sure, and
    without replacement q without the tokens drawn before, normalised (RSD, arXiv
    2402.14160; Sequoia, arXiv 2402.12374). Where those exhaust q, Sequoia goes on
    uniformly over untried tokens, and our law with `NO_TOKEN`, which this rule passes
    over.
    """

    serves = (IID, Independent, WithoutReplacement, Deterministic)

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision by one pass over the slots."""
        dtype = jnp.promote_types(p.dtype, law.dtype)
        outside = outside_law(p.astype(dtype), law)
        outside_mass = blockwise_sum(outside)

        def judge(carry, slot):
            reach, rest = carry
            token, q = slot
            wanted, drawn = (law.lookup(x, token[None])[0] for x in (rest.inside, q))
            ratio = accept_probability(wanted, drawn)
            left = _less(rest, q, outside_mass)
            rest = jax.tree.map(lambda x, y: jnp.where(token >= 0, x, y), left, rest)
            return (reach * (1 - ratio), rest), reach * ratio

        one = jnp.ones((), dtype)
        init = one, _Rest(law.take(p).astype(dtype), one)
        slots = draft_tokens, _rows(law, draft_tokens)
        (reach, rest), accept = jax.lax.scan(judge, init, slots)
        residual = law.spread(rest.inside) + rest.scale * outside
        return Decision(accept, reach * residual)

    def has_acceptance_rate(self, law: DraftLaw) -> bool:
        """Not without replacement, where q_j depends on the draws before."""
        return not isinstance(law, WithoutReplacement) or law.num_drafts == 1

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """1 - prod_j (1 - sum_i min(p'_i, q_ji)), p' as it is at draft j: []."""
        self.check(law)
        if not self.has_acceptance_rate(law):
            return super().acceptance_rate(p, law)
        dtype = jnp.promote_types(p.dtype, law.dtype)
        outside_mass = blockwise_sum(outside_law(p.astype(dtype), law))

        def judge(j, carry):
            reach, rest = carry
            q = law.first if rows is None else rows[j]
            accept = jnp.sum(jnp.minimum(rest.inside, q))
            return reach * jnp.maximum(1 - accept, 0), _less(rest, q, outside_mass)

        rows = None if law.joins else _rows(law, jnp.arange(law.num_drafts))
        one = jnp.ones((), dtype)
        init = one, _Rest(law.take(p).astype(dtype), one)
        return 1 - jax.lax.fori_loop(0, law.num_drafts, judge, init)[0]


def _less(rest: _Rest, q: Array, outside_mass: Array) -> _Rest:
    """Normalised (p' - q)_+; p' itself if that is empty, which nobody reaches."""
    inside = jnp.maximum(rest.inside - q, 0)
    total = blockwise_sum(inside) + rest.scale * outside_mass
    left = _Rest(quotient(inside, total), quotient(rest.scale, total))
    return jax.tree.map(lambda x, y: jnp.where(total > 0, x, y), left, rest)


def _rows(law: DraftLaw, draft_tokens: Array) -> Array:
    """[m, k] for each slot, the law of its draft given the ones before it."""
    slots = draft_tokens.shape[0]
    if law.joins:
        return jnp.broadcast_to(law.first, (slots, *law.first.shape))
    if isinstance(law, WithoutReplacement):
        mine = jax.vmap(lambda token: _is_token(law, token))(draft_tokens)
        before = jnp.cumsum(mine, axis=0) - mine
        left = jnp.where(before > 0, 0, law.first)
        return quotient(left, blockwise_sum(left)[:, None])
    rows = law.token_probs
    if isinstance(law, Deterministic):
        rows = jnp.eye(law.num_drafts, dtype=law.dtype)
    # Slots that are not in use are passed over: the j-th one in use holds draft j.
    rank = jnp.cumsum(draft_tokens >= 0) - 1
    return rows[jnp.clip(rank, 0, law.num_drafts - 1)]


def _is_token(law: DraftLaw, token: Array) -> Array:
    """[k] int32, 1 at the place of `token []` among the law's tokens."""
    own = jnp.arange(law.vocab_size) if law.tokens is None else law.tokens
    return (own == token).astype(jnp.int32)
