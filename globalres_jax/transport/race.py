"""The race: exponential weights on the drafts, and what they achieve.

Token i gets a weight w_i = exp(a_i), a reject slot weight 1, and of the drafts X slot j
is picked with probability w[X_j] / (1 + sum_k w[X_k]): as if each slot's clock rang at
that rate and the first to ring won. The *pick law* beta_i is the probability that token
i is picked, over the drafts and the race. Emitting a picked i with probability
min(1, p_i / beta_i), and else from the normalised p - min(beta, p), is lossless for
every w (Khisti et al., arXiv 2410.18234). The weights only decide how much is accepted,
and the best ones minimise the *dual*, which is convex (Thomas & Pal, arXiv 2511.15898):

    Phi(a) = E log(1 + sum_j w[X_j]) - p.a,     a_i <= A,       dPhi/da = beta - p

`iid_race` has the race of i.i.d. drafts, `law_race` that of any draft law. All arrays
are over the k tokens that the law can draw.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport.hessian import Curvature
from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND, LOG_WEIGHT_FLOOR


class Race(Protocol):
    """One transport problem: a pytree.

    Attributes:
      p: [k] target probabilities (may sum to less than 1).
      q: [k] mean draft probability, E N_i / n for N_i drafts that are token i.
      num_drafts: n.
      excess: [] Q(H) - p(H) of the best set H known beforehand, see
        `subset_selection`: no rule accepts more than 1 - excess.
      missing: [] 1 - sum(p), target probability that no draft can serve.
    """

    p: Array
    q: Array
    excess: Array
    missing: Array

    @property
    def num_drafts(self) -> int | Array: ...

    def pick_law(self, weights: Array) -> Array:
        """beta [k] for `weights [k]`, on the fine grid."""
        ...

    def curvature(self, weights: Array) -> Curvature:
        """Pick law and Hessian of the dual for `weights [k]`, on the coarse grid."""
        ...

    def dual_objective(self, log_weights: Array) -> Array:
        """Phi(a): []."""
        ...

    def best_excess(self, log_weights: Array) -> Array:
        """Largest Q(H) - p(H) known, given log-weights near the optimum: []."""
        ...


def race_weights(race: Race, log_weights: Array) -> Array:
    """w = exp(a), and zero for tokens that the target never emits: [k]."""
    return jnp.where(race.p > 0, jnp.exp(log_weights), 0)


def rejection_rate(p: Array, pick: Array, missing: Array) -> Array:
    """1 - sum_i min(beta_i, p_i) from small numbers: [].

    Args:
      p: [k] target probabilities.
      pick: [k] beta.
      missing: [] 1 - sum(p).
    """
    return blockwise_sum(jnp.maximum(p - pick, 0)) + missing


def acceptance_gap(race: Race, log_weights: Array, pick: Array) -> Array:
    """Optimal minus achieved acceptance rate, from two small sums: [].

    The race rejects `sum (p - beta)_+`, the best rule rejects `Q(H*) - p(H*)`.
    """
    rejected = rejection_rate(race.p, pick, race.missing)
    return rejected - race.best_excess(log_weights)


def free_tokens(race: Race, log_weights: Array, pick: Array) -> Array:
    """[k] bool: tokens whose optimality condition is `beta_i = p_i`.

    The others have no mass to move, or sit at the bound and still want more.
    """
    satisfied = (log_weights >= LOG_WEIGHT_BOUND) & (pick <= race.p)
    return (race.p > 0) & (race.q > 0) & ~satisfied


def inner_tokens(race: Race, log_weights: Array) -> Array:
    """[k] bool: tokens whose weight is between the bounds, and moves with p and q."""
    between = (log_weights > LOG_WEIGHT_FLOOR) & (log_weights < LOG_WEIGHT_BOUND)
    return (race.p > 0) & (race.q > 0) & between


def optimality(log_weights: Array, race: Race) -> Array:
    """[k] zero at the solution: beta - p, or a - A for tokens held by the bound.

    Its Jacobian in a is the dual's Hessian for the inner tokens, 1 for all others:
    symmetric and positive.
    """
    inner = inner_tokens(race, log_weights)
    moving = jnp.where(inner, log_weights, jax.lax.stop_gradient(log_weights))
    pick = race.pick_law(race_weights(race, moving))
    return jnp.where(inner, pick - race.p, log_weights - LOG_WEIGHT_BOUND)
