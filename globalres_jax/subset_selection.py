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


class OptimalSubset(NamedTuple):
    """The set that bounds the acceptance rate.

    Attributes:
      excess: [] `Q(H*) - p(H*) >= 0`, so that `alpha* = 1 - excess`; kept apart
        because it is a small number with a small rounding error.
      members: [V] bool, the set H*.
    """

    excess: Array
    members: Array


def optimal_subset(p: Array, q: Array, num_drafts: int | Array) -> OptimalSubset:
    """Minimiser of `p(H) + 1 - q(H)^n` over the prefixes of q/p descending.

    Args:
      p: [V] target (sub-)distribution.
      q: [V] draft (sub-)distribution.
      num_drafts: n.
    """
    # Tokens that are never drafted only add to p(H), so they come last.
    ratio = jnp.where(p > 0, q / jnp.where(p > 0, p, 1), jnp.where(q > 0, jnp.inf, 0))
    order = jnp.argsort(-ratio)
    inside = jnp.minimum(jnp.cumsum(q[order]), 1)
    excess = inside**num_drafts - jnp.cumsum(p[order])
    last = jnp.argmax(excess)
    largest = excess[last]
    kept = (jnp.arange(p.shape[0]) <= last) & (largest > 0)
    members = jnp.zeros(p.shape, bool).at[order].set(kept)
    return OptimalSubset(jnp.maximum(largest, 0), members)


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
    subset = optimal_subset(p, law.probs, law.num_drafts)
    members = jax.lax.stop_gradient(subset.members)
    return jnp.minimum(
        jnp.sum(jnp.where(members, p, 0)) + 1 - law.containment(members), 1
    )
