"""The optimal acceptance rate without the plan (Hu et al., arXiv 2502.18779).

    alpha* = min_H  p(H) + 1 - Q(H),      Q(H) = Pr[all drafts lie in H]

For most laws the minimiser is a prefix of the tokens in a known order (for i.i.d.
drafts, q/p descending), so one sort and two cumulative sums find it. Every prefix of
any order is an upper bound, which is what the run-time certificate uses.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.numerics.rows import in_rows
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond, running_sums
from globalres_jax.transport.pools import (
    LEAST_LOG_RATIO,
    bin_width,
    log_ratio,
    ratio_bins,
)

#: Up to this many tokens comparing each with each costs least.
_COMPARED = 320
#: Of more, a histogram of log(p/q). With the bin for p/q >= n, a whole number of rows.
_BINS, _ROW = 2047, 32
#: From its best edge the threshold settles in one or two sweeps.
_SWEEPS = 4
#: Roundings by which an excess must be larger to count as larger.
_ROUNDINGS = 8


class OptimalPrefix(NamedTuple):
    """The set that bounds the acceptance rate.

    Attributes:
      excess: [] `Q(H*) - p(H*) >= 0`, so that `alpha* = 1 - excess`; kept apart
        because it is a small number with a small rounding error.
      members: [V] bool, the set H*.
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
    length = _first_largest(excess)
    return OptimalPrefix(jnp.maximum(excess[length], 0), jnp.arange(len(p)) < length)


def optimal_prefix(
    p: Array, q: Array, num_drafts: int | Array, outside_p: Array
) -> OptimalPrefix:
    """`best_prefix` for i.i.d. drafts.

    Args:
      p: [V] target probabilities, sorted by q/p descending.
      q: [V] draft probabilities in the same order.
      num_drafts: n.
      outside_p: [] target mass of tokens that are in no prefix.
    """
    return best_prefix(p, one_minus_power(mass_beyond(q), num_drafts), outside_p)


def optimal_threshold(
    p: Array, q: Array, num_drafts: Array, outside_p: Array
) -> OptimalPrefix:
    """`optimal_prefix` of tokens in any order, none of which are sorted.

    A prefix in q/p holds the tokens with p/q up to a threshold. One that cannot be
    improved satisfies `theta = n q(H)^(n-1)`, what one more unit of draft mass adds to
    Q(H), and the right side increases with theta: from the best edge of a histogram,
    substituting it leads there in a few sweeps. Of few tokens, each one's p/q is tried
    as the threshold. Each set found is a valid bound.

    Args:
      p: [V] target probabilities.
      q: [V] draft probabilities.
      num_drafts: n.
      outside_p: [] as for `optimal_prefix`.
    """
    find = _compared_members if p.shape[0] <= _COMPARED else in_rows(_swept_members)
    members = find(*map(jax.lax.stop_gradient, (p, q, num_drafts)))
    left_p, left_q = blockwise_sum(jnp.where(members, 0, jnp.stack([p, q])))
    excess = outside_p + left_p - one_minus_power(left_q, num_drafts)
    return OptimalPrefix(jnp.maximum(excess, 0), members)


def _compared_members(p: Array, q: Array, n: Array) -> Array:
    """[V] bool, the best set of all tokens with p/q up to some token's, or of none."""
    ratio = _ranking(p, q)
    above = ratio[None, :] > ratio[:, None]
    left_p, left_q = (jnp.sum(jnp.where(above, mass, 0), axis=1) for mass in (p, q))
    excess = left_p - one_minus_power(left_q, n)
    nothing = jnp.sum(p) - one_minus_power(jnp.sum(q), n)
    best = _first_largest(excess)
    members = (ratio <= ratio[best]) & (excess[best] >= nothing)
    everything, enough = _everything(ratio, p)
    better = jnp.maximum(excess[best], nothing) > enough
    return jnp.where(better, members, everything)


def _swept_members(p: Array, q: Array, n: Array) -> Array:
    """[V] bool, the best set of all tokens with p/q below some threshold."""
    ratio = _ranking(p, q)
    masses = jnp.stack([p, q])
    # Bins from the largest p/q down: first those of log n and more.
    place = jnp.where(ratio < jnp.log(n), _BINS - ratio_bins(ratio, n, _BINS), 0)
    place = jnp.where(p > 0, place, _BINS + 1)
    bins = [jnp.zeros(_BINS + 1, p.dtype).at[place].add(x, mode="drop") for x in masses]
    left_p, left_q = running_sums(jnp.stack(bins).reshape(2, -1, _ROW))
    edge = _BINS - _first_largest(left_p - one_minus_power(left_q, n))
    threshold = LEAST_LOG_RATIO + edge * bin_width(n, _BINS)

    def sweep(carry, _):
        threshold, excess, best = carry
        members = ratio < threshold
        left_p, left_q = blockwise_sum(jnp.where(members, 0, masses))
        found = left_p - one_minus_power(left_q, n)
        better = found > excess
        best = jnp.where(better, members, best)
        inside = jnp.log1p(-jnp.minimum(left_q, 1 - jnp.finfo(p.dtype).eps))
        following = jnp.log(n) + (n - 1) * inside
        return (following, jnp.where(better, found, excess), best), None

    everything, enough = _everything(ratio, p)
    start = threshold, enough, everything
    return jax.lax.scan(sweep, start, length=_SWEEPS)[0][2]


def _everything(ratio: Array, p: Array) -> tuple[Array, Array]:
    """All that can be drafted [V], and the excess from which another set is better.

    Solvers start best from this set, and rounding must not choose: neither that of
    sums, nor that of a row which holds a little more than 1.
    """
    members = ratio < jnp.inf
    excess = jnp.sum(jnp.where(members, 0, p))
    surplus = jnp.maximum(blockwise_sum(p) - 1, 0)
    return members, excess + surplus + _ROUNDINGS * jnp.finfo(p.dtype).eps


def _ranking(p: Array, q: Array) -> Array:
    """[V] log(p/q), with infinities for what no set or every set should hold."""
    ratio = jnp.where(q > 0, log_ratio(p, q), jnp.inf)
    return jnp.where(p > 0, ratio, -jnp.inf)


def _first_largest(values: Array) -> Array:
    """Place of the largest of `values`, flattened: [].

    Argmax alone would have XLA compute `values` within its loop, one by one.
    """
    return jnp.argmax(jnp.ravel(values == jnp.max(values)))
