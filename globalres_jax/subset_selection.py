"""The optimal acceptance rate without the plan (Hu et al., arXiv 2502.18779).

    alpha* = min_H  p(H) + 1 - Q(H),      Q(H) = Pr[all drafts lie in H]

For most laws the minimiser is a prefix of the tokens in a known order (for i.i.d.
drafts, q/p descending), so one sort and two cumulative sums find it. Every prefix of
any order is an upper bound, which is what the run-time certificate uses.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.draft_laws.iid import escape_of
from globalres_jax.draft_laws.law import mass_beyond


class OptimalPrefix(NamedTuple):
    """The set that bounds the acceptance rate, in sorted tokens.

    Attributes:
      excess: [] `Q(H*) - p(H*) >= 0`, so that `alpha* = 1 - excess`; kept apart
        because it is a small number with a small rounding error.
      members: [V] bool, a prefix of the sorted tokens: the set H*.
    """

    excess: Array
    members: Array


def best_prefix(p: Array, escape: Array, outside_p: Array) -> OptimalPrefix:
    """Minimiser of `p(H) + 1 - Q(H)` over the prefixes H of sorted tokens.

    Args:
      p: [V] target probabilities, sorted.
      escape: [V + 1] 1 - Q(H) of every prefix.
      outside_p: [] target mass of tokens that are in no prefix.
    """
    # Q(H) - p(H) = (1 - p(H)) - (1 - Q(H)): small sums of what is left.
    excess = outside_p + mass_beyond(p) - escape
    length = jnp.argmax(excess)
    return OptimalPrefix(jnp.maximum(excess[length], 0), jnp.arange(len(p)) < length)


def optimal_prefix(
    p: Array, q: Array, num_drafts: int | Array, outside_p: Array, outside_q: Array
) -> OptimalPrefix:
    """`best_prefix` for i.i.d. drafts.

    Args:
      p: [V] target probabilities, sorted by q/p descending.
      q: [V] draft probabilities in the same order.
      num_drafts: n.
      outside_p: [] target mass of tokens that are in no prefix.
      outside_q: [] draft mass of tokens that are in no prefix. All other mass that
        `p` and `q` lack belongs to every prefix.
    """
    return best_prefix(p, escape_of(outside_q + mass_beyond(q), num_drafts), outside_p)
