"""The optimal acceptance rate without the plan (Hu et al., arXiv 2502.18779).

    alpha* = min_H  p(H) + 1 - Q(H),      Q(H) = Pr[all drafts lie in H]

For i.i.d. drafts the minimiser is a prefix of the tokens ordered by q/p descending,
so one sort and two cumulative sums find it. Every prefix of any order is an upper
bound, which is what the run-time certificate uses.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.checks import as_distribution, same_vocabulary
from globalres_jax.draft_laws import IID


class OptimalPrefix(NamedTuple):
    """The set that bounds the acceptance rate, in tokens sorted by `ratio_order`.

    Attributes:
      excess: [] `Q(H*) - p(H*) >= 0`, so that `alpha* = 1 - excess`; kept apart
        because it is a small number with a small rounding error.
      members: [V] bool, a prefix of the sorted tokens: the set H*.
    """

    excess: Array
    members: Array


def ratio_order(p: Array, q: Array) -> Array:
    """[V] tokens ordered by q/p descending; those never drafted come last."""
    ratio = jnp.where(p > 0, q / jnp.where(p > 0, p, 1), jnp.where(q > 0, jnp.inf, 0))
    return jnp.argsort(-ratio)


def optimal_prefix(
    p: Array, q: Array, num_drafts: int | Array, outside_p: Array, outside_q: Array
) -> OptimalPrefix:
    """Minimiser of `p(H) + 1 - Q(H)` over the prefixes H of sorted tokens.

    Args:
      p: [V] target probabilities, sorted by `ratio_order`.
      q: [V] draft probabilities in the same order.
      num_drafts: n.
      outside_p: [] target mass of tokens that are in no prefix.
      outside_q: [] draft mass of tokens that are in no prefix. All other mass that
        `p` and `q` lack belongs to every prefix.
    """

    def beyond(mass: Array, outside: Array) -> Array:
        """Mass outside each prefix: small sums of what is left, not 1 minus much."""
        suffix = jnp.cumsum(mass[::-1])[::-1]
        return outside + jnp.concatenate([suffix, jnp.zeros(1, mass.dtype)])

    left_p, left_q = beyond(p, outside_p), beyond(q, outside_q)
    # Q(H) - p(H) = (1 - p(H)) - (1 - Q(H)), with Q(H) = (1 - left_q)^n.
    eps = jnp.finfo(q.dtype).eps
    log_inside = jnp.log1p(-jnp.minimum(left_q, 1 - eps))
    excess = left_p + jnp.expm1(num_drafts * log_inside)
    length = jnp.argmax(excess)
    members = jnp.arange(p.shape[0]) < length
    return OptimalPrefix(jnp.maximum(excess[length], 0), members)


def optimal_acceptance_rate(p: Array, law: IID) -> Array:
    """Largest acceptance rate of any lossless rule: min over H of p(H) + 1 - Q(H).

    Args:
      p: [V] target distribution.
      law: draft law over the same V tokens.

    Returns:
      [] acceptance rate in [0, 1]. Differentiable: the gradient is the envelope
      theorem's.

    Raises:
      ValueError: `p` is no distribution or the vocabularies differ.
    """
    p = as_distribution("p", p, allow_deficit=True)
    same_vocabulary(p, law)
    order = ratio_order(p, law.probs)
    nothing = jnp.zeros((), law.probs.dtype)
    prefix = optimal_prefix(
        p[order], law.probs[order], law.num_drafts, 1 - jnp.sum(p), nothing
    )
    members = jnp.zeros(p.shape, bool).at[order].set(prefix.members)
    members = jax.lax.stop_gradient(members)
    return jnp.minimum(
        jnp.sum(jnp.where(members, p, 0)) + 1 - law.containment(members), 1
    )
