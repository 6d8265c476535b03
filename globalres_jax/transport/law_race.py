"""The race of any draft law, through the moments of its Laplace functional.

    beta_i = int exp(-t) w_i E[N_i Z] dt,        Z = exp(-t sum_j w[X_j])
    d beta_i / d a_j = - int exp(-t) t w_i w_j E[N_i N_j Z] dt        for i != j

with N_i the number of drafts that are token i. I.i.d. drafts have a leaner form of
their own in `iid_race`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.draft_laws import DraftLaw, Moments
from globalres_jax.numerics.sums import blockwise_sum, product
from globalres_jax.transport.hessian import (
    FactorCurvature,
    NodeCurvature,
    pair_factors,
    relative_counts,
)
from globalres_jax.transport.quadrature import quadrature
from globalres_jax.transport.subset_selection import best_prefix

#: The Hessian is integrated on every second node of the coarse grid.
_STRIDE = 2


class LawRace(NamedTuple):
    """A `Race` of drafts from a law that is known by its moments.

    Attributes:
      p: [k] target probabilities of the law's tokens (may sum to less than 1).
      q: [k] about the mean draft probability, E N_i / n.
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

    def curvature(self, weights: Array) -> NodeCurvature | FactorCurvature:
        """Pick law and Hessian of the dual, for `weights [k]`.

        As for i.i.d. drafts the row sums are exact, what a common factor of all weights
        does to beta, and all entries off the diagonal negative: the Hessian is
        positive semidefinite, and errs at most in how it spreads. Second moments are
        exact for independent drafts; for others they are those of `pair_factors`.
        """
        nodes, measure = quadrature(weights.dtype, "coarse")
        moments = self._moments(weights, "coarse")
        scales = jnp.asarray(np.stack([measure, measure * nodes]))
        first, second = product(scales, moments.mean)
        pick = weights * first

        spacing = _STRIDE * (measure * nodes)[::_STRIDE]
        value = moments.value[::_STRIDE]
        counts = relative_counts(moments.mean[::_STRIDE], value)
        if moments.by_draft is not None:
            scale = jnp.sqrt(spacing * value)[:, None] * weights[None]
            plus = scale * counts
            each = moments.by_draft[:, ::_STRIDE]
            minus = (scale[None] * relative_counts(each, value[None])).reshape(
                -1, len(weights)
            )
            others = _column_sums(plus) - _column_sums(minus)
            return FactorCurvature(pick, weights * second + others, plus, minus)
        factors = pair_factors(counts, self.num_drafts)
        squared = (1 - 1 / self.num_drafts) * spacing * value
        others = product(squared * product(factors, weights), factors)
        return NodeCurvature(
            pick=pick,
            diagonal=weights * (second + others),
            survive=factors,
            node_scale=jnp.sqrt(squared),
            token_scale=weights,
        )

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
    mean = law.rough_counts() / law.num_drafts
    return LawRace(p, mean, law, excess, missing), members


def _column_sums(factors: Array) -> Array:
    """Row sums [k] of F^T F for F = `factors [A, k]`."""
    return product(jnp.sum(factors, axis=1), factors)
