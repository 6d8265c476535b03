"""The race of any draft law, through the moments of its Laplace functional.

    beta_i = int exp(-t) w_i E[N_i Z] dt,        Z = exp(-t sum_j w[X_j])
    d beta_i / d a_j = beta_i [i = j] - int exp(-t) t w_i w_j E[N_i N_j Z] dt

with N_i the number of drafts that are token i. I.i.d. drafts have a leaner form of
their own in `iid_race`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.draft_laws import DraftLaw, Moments
from globalres_jax.numerics.sums import blockwise_sum, product
from globalres_jax.transport.hessian import (
    DENSE_UP_TO,
    FactorCurvature,
    dense_curvature,
)
from globalres_jax.transport.quadrature import quadrature
from globalres_jax.transport.subset_selection import best_prefix


class LawRace(NamedTuple):
    """A `Race` of drafts from a law that is known by its moments.

    Attributes:
      p: [k] target probabilities of the law's tokens (may sum to less than 1).
      q: [k] mean draft probability, E N_i / n.
      law: the draft law.
      excess: [] Q(H) - p(H) of the best set H known beforehand.
      missing: [] 1 - sum(p), target probability that no draft can serve.
    """

    p: Array
    q: Array
    law: DraftLaw
    excess: Array
    missing: Array

    @property
    def num_drafts(self) -> int:
        """Number of drafts n."""
        return self.law.num_drafts

    def pick_law(self, weights: Array) -> Array:
        """beta [k]: the probability that each token is picked, for `weights [k]`."""
        _, measure = quadrature(weights.dtype)
        moments = self._moments(weights, "fine")
        return weights * product(jnp.asarray(measure), moments.mean)

    def curvature(self, weights: Array) -> FactorCurvature:
        """Pick law and Hessian of the dual, for `weights [k]`."""
        if not self.law.exact_moments and len(weights) <= DENSE_UP_TO:
            return dense_curvature(self.pick_law, weights)
        nodes, measure = quadrature(weights.dtype, "coarse")
        moments = self._moments(weights, "coarse")
        pick = weights * product(jnp.asarray(measure), moments.mean)
        own = weights * product(jnp.asarray(measure * nodes), moments.diagonal)
        scale = jnp.sqrt(measure * nodes)[:, None] * weights[None]

        def rows(factors: Array) -> Array:
            return (factors * scale[None]).reshape(-1, weights.shape[0])

        plus, minus = rows(moments.plus), rows(moments.minus)
        return FactorCurvature(pick, pick - weights * own, plus, minus)

    def dual_objective(self, log_weights: Array) -> Array:
        """Phi(a) of the race dual; its gradient is `pick_law - p`."""
        nodes, measure = quadrature(log_weights.dtype)
        value = self._moments(jnp.exp(log_weights), "fine").value
        integral = jnp.sum(measure / nodes * (1 - value))
        return integral - jnp.sum(jnp.where(self.p > 0, self.p * log_weights, 0))

    def best_excess(self, log_weights: Array) -> Array:
        """Largest Q(H) - p(H) known, given log-weights near the optimum: []."""
        if self.law.prefix_is_optimal:
            return self.excess
        # Weights sort tokens as the optimal subset does: those at the bound are out.
        order = jnp.argsort(jax.lax.stop_gradient(log_weights))
        found = best_prefix(self.p[order], self.law.escape(order), self.missing).excess
        return jnp.maximum(found, self.excess)

    def _moments(self, weights: Array, grid: str) -> Moments:
        """The law's moments at u = t w, for the nodes t of a grid."""
        nodes, _ = quadrature(weights.dtype, grid)
        return self.law.moments(jnp.exp(-nodes[:, None] * weights[None, :]))


def law_race(p: Array, law: DraftLaw) -> tuple[LawRace, Array]:
    """The race of a law for `p [k]`, and a subset H [k] bool that bounds it."""
    missing = 1 - blockwise_sum(p)
    order = law.subset_order(p)
    excess, prefix = best_prefix(p[order], law.escape(order), missing)
    members = jnp.zeros(p.shape, bool).at[order].set(prefix)
    mean_counts = law.moments(jnp.ones((1, p.shape[0]), p.dtype)).mean[0]
    return LawRace(p, mean_counts / law.num_drafts, law, excess, missing), members
