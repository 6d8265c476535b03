"""Newton on the race dual: where to start, a damped step, how far from optimal."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.transport.hessian import Curvature
from globalres_jax.transport.pools import log_ratio
from globalres_jax.transport.iid_race import (
    LOG_WEIGHT_BOUND,
    LOG_WEIGHT_FLOOR,
    RaceProblem,
    optimal_excess,
    rejection_rate,
)

_TINY = 1e-37
#: Where H* is served in full, more than needed serves as well as what is needed.
_OVERLOAD = 1.1
_LARGEST_AVERAGE = 0.5 * LOG_WEIGHT_BOUND
_LARGEST_LOG_SHARE = -1e-6


def start_weights(problem: RaceProblem, members: Array) -> Array:
    """Log-weights [V] to begin with: A outside H*, inside by a mean field.

    Of the drafts of token i that come with others from H*, the share
    r_i = p_i q(H*) / (n q_i Q(H*)) must be picked. Against others of total weight S
    that is w / (1 + w + S) = r_i, solved with their average weight if all were alike:
    n w / (1 + n w) = p(H*) / Q(H*). (One draft has no others: this is exact.)
    """
    p, q, n = problem.p, problem.q, problem.num_drafts
    inside_p = jnp.sum(jnp.where(members, p, 0))
    inside_q = jnp.sum(jnp.where(members, q, 0))
    average = jnp.minimum(log_ratio(inside_p, n * problem.excess), _LARGEST_AVERAGE)
    others = _OVERLOAD * (n - 1) * jnp.exp(average)
    share = log_ratio(p, q) - log_ratio(n * (inside_p + problem.excess), inside_q)
    share = jnp.minimum(share, _LARGEST_LOG_SHARE)
    inside = jnp.log1p(others) + share - jnp.log(-jnp.expm1(share))
    inside = jnp.clip(inside, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)
    return jnp.where(members, inside, LOG_WEIGHT_BOUND)


def acceptance_gap(problem: RaceProblem, log_weights: Array, pick: Array) -> Array:
    """Optimal minus achieved acceptance rate, from two small sums: [].

    The race rejects `sum (p - beta)_+`, the best rule rejects `Q(H*) - p(H*)`.
    """
    rejected = rejection_rate(problem.p, pick, problem.missing)
    return rejected - optimal_excess(problem, log_weights)


def free_tokens(problem: RaceProblem, log_weights: Array, pick: Array) -> Array:
    """[V] bool: tokens whose optimality condition is `beta_i = p_i`.

    The others have no mass to move, or sit at the bound and still want more.
    """
    satisfied = (log_weights >= LOG_WEIGHT_BOUND) & (pick <= problem.p)
    return (problem.p > 0) & (problem.q > 0) & ~satisfied


def newton_direction(
    problem: RaceProblem, curve: Curvature, free: Array, damping: Array
) -> Array:
    """Levenberg-damped Newton step on the free tokens: [V].

    The Hessian is diagonal plus low rank; its diagonal is scaled to 1.
    """
    # The exact diagonal is positive; rounding near the bound is not always.
    diagonal = jnp.maximum(curve.diagonal, 1e-3 * curve.pick)
    diagonal = diagonal + damping * curve.pick + _TINY
    root = jnp.where(free, jax.lax.rsqrt(diagonal), 0)
    gradient = jnp.where(free, problem.p - curve.pick, 0) * root
    step = curve.solve_scaled(root, gradient)
    # A factorisation that rounding broke leaves the diagonal step.
    return jnp.where(jnp.all(jnp.isfinite(step)), step, gradient) * root
