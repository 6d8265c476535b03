"""K-sequential selection (SpecTr, Sun et al., arXiv 2310.15141)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.numerics.quotient import quotient
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import (
    Rule,
    accept_in_turn,
    accept_probability,
    rejected,
)

_BISECTIONS = 40


class KSeqPlan(NamedTuple):
    """What the rule knows before it sees the drafts.

    Attributes:
      divisor: [] r, at least the root that makes the residual non-negative.
      accept: [] b(r) = sum_i min(p_i / r, q_i), the chance of each draft.
      reach: [] 1 - (1 - b)^n, the chance that one of them is accepted.
    """

    divisor: Array
    accept: Array
    reach: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class KSeq(Rule):
    """Accept draft x with probability min(1, p(x) / (r q(x))), the first wins.

    With b(r) = sum_i min(p_i / r, q_i) the divisor r in [1, n] solves
    1 - (1 - b)^n = r b; it is rounded up, since a smaller one is not lossless. The
    residual is (p - min(p / r, q) (1 - (1 - b)^n) / b)_+. Accepts at least
    1 - (1 - 1/n)^n of the optimum. One draft of any law is an independent one, and
    with r = 1 this is single-draft sampling.
    """

    serves = (IID,)

    def check(self, law: DraftLaw) -> None:
        """Raises TypeError for more than one draft of another law."""
        if not (isinstance(law, DraftLaw) and law.max_drafts == 1):
            super().check(law)

    def prepare(self, p: Array, law: DraftLaw) -> KSeqPlan:
        """Finds r by bisection."""
        p, q, n = law.take(p), law.first, law.num_drafts
        dtype = jnp.promote_types(p.dtype, q.dtype)

        def accept(divisor: Array) -> Array:
            return jnp.sum(jnp.minimum(p / divisor, q))

        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            b = accept(middle)
            enough = one_minus_power(b, n) <= middle * b
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        bracket = jnp.ones((), dtype), jnp.asarray(n, dtype)
        _, divisor = jax.lax.fori_loop(0, _BISECTIONS, halve, bracket)
        divisor = _with_derivatives(divisor, accept, n)
        b = accept(divisor)
        return KSeqPlan(divisor, b, one_minus_power(b, n))

    def resolve(
        self, plan: KSeqPlan, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Decision by one look at each slot."""
        q = law.first
        drawn = law.lookup(q, draft_tokens)
        chance = accept_probability(p[draft_tokens] / plan.divisor, drawn)
        accept = accept_in_turn(chance)
        scale = quotient(plan.reach, plan.accept)
        taken = scale * jnp.minimum(law.take(p) / plan.divisor, q)
        residual = normalized_residual(jnp.maximum(p - law.spread(taken), 0), p)
        return Decision(accept, rejected(accept) * residual)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """1 - (1 - b)^n: []."""
        return self.prepare(p, law).reach


def _with_derivatives(divisor: Array, accept: Callable, n: int | Array) -> Array:
    """`divisor []` as the root of F(r) = 1 - (1 - b(r))^n - r b(r), differentiable.

    dr = -dF / F'(r), the implicit function theorem. Where F does not fall at r it has
    no derivative: r = 1 if there is one draft, and if all or nothing overlaps.
    """
    divisor = jax.lax.stop_gradient(divisor)

    def excess(divisor: Array) -> Array:
        b = accept(divisor)
        return one_minus_power(b, n) - divisor * b

    value, slope = jax.value_and_grad(excess)(divisor)
    value, slope = value - jax.lax.stop_gradient(value), jax.lax.stop_gradient(slope)
    falls = (slope < -jnp.finfo(slope.dtype).eps) & (divisor > 1)
    # The first-order change is zero in value.
    return divisor - jnp.where(falls, value / jnp.where(falls, slope, 1), 0)
