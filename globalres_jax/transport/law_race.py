"""The race for any draft law, through the moments of its Laplace functional.

    beta_i = int exp(-t) w_i E[N_i Z] dt,        Z = exp(-t sum_j w[X_j])
    d beta_i / d a_j = beta_i [i = j] - int exp(-t) t w_i w_j E[N_i N_j Z] dt

I.i.d. drafts have a leaner form of their own in `race.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.transport.hessian import curvature, solve_identity_minus
from globalres_jax.draft_laws import DraftLaw
from globalres_jax.transport.iid_race import (
    dual_objective,
    optimal_excess,
    pick_law,
    quadrature,
)
from globalres_jax.transport.subset_selection import best_prefix
from globalres_jax.numerics.sums import product

#: Up to this many tokens a Hessian without exact factors is computed entry by entry.
_DENSE = 64


class LawProblem(NamedTuple):
    """One transport problem on the tokens that can be drafted.

    Attributes:
      p: [V] target probabilities of these tokens (may sum to less than 1).
      q: [V] mean draft probability, E N_i / n.
      law: the draft law over these tokens.
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


class LawCurvature(NamedTuple):
    """Pick law and Hessian `diag(diagonal) - plus^T plus + minus^T minus`.

    Attributes:
      pick: [V] beta.
      diagonal: [V].
      plus: [A, V].
      minus: [B, V].
      coupling: [V, V] the Hessian off its diagonal, where it was worth computing
        without factors, else None.
    """

    pick: Array
    diagonal: Array
    plus: Array
    minus: Array
    coupling: Array | None = None

    def solve_scaled(self, root: Array, right: Array) -> Array:
        """`(I - R (plus^T plus - minus^T minus) R)^-1 right`, R = diag(root)."""
        if self.coupling is not None:
            gram = -root[:, None] * self.coupling * root[None]
            return solve_identity_minus(gram, right)
        plus, minus = self.plus * root[None], self.minus * root[None]
        if len(root) <= len(plus) + len(minus):
            gram = product(plus.T, plus) - product(minus.T, minus)
            return solve_identity_minus(gram, right)

        def shrink(x: Array) -> Array:
            """(I + B^T B)^-1 x by Woodbury, for the columns of x, B = minus."""
            if len(minus) == 0:
                return x
            inner = solve_identity_minus(-product(minus, minus.T), product(minus, x))
            return x - product(minus.T, inner)

        # And once more: (G - A^T A)^-1 = G^-1 + G^-1 A^T (I - A G^-1 A^T)^-1 A G^-1.
        columns = shrink(jnp.concatenate([right[:, None], plus.T], axis=1))
        start, spread = columns[:, 0], columns[:, 1:]
        middle = solve_identity_minus(product(plus, spread), product(plus, start))
        return start + product(spread, middle)


@pick_law.register
def _(problem: LawProblem, weights: Array) -> Array:
    nodes, measure = quadrature(weights.dtype)
    moments = problem.law.moments(jnp.exp(-nodes[:, None] * weights[None, :]))
    return weights * product(jnp.asarray(measure), moments.mean)


@curvature.register
def _(problem: LawProblem, weights: Array) -> LawCurvature:
    nodes, measure = quadrature(weights.dtype, "coarse")
    if not problem.law.exact_moments and len(weights) <= _DENSE:
        return _dense_curvature(problem, weights)
    moments = problem.law.moments(jnp.exp(-nodes[:, None] * weights[None, :]))
    pick = weights * product(jnp.asarray(measure), moments.mean)
    own = weights * product(jnp.asarray(measure * nodes), moments.diagonal)
    scale = jnp.sqrt(measure * nodes)[:, None] * weights[None]

    def rows(factors: Array) -> Array:
        return (factors * scale[None]).reshape(-1, weights.shape[0])

    return LawCurvature(
        pick, pick - weights * own, rows(moments.plus), rows(moments.minus)
    )


def _dense_curvature(problem: LawProblem, weights: Array) -> LawCurvature:
    """By forward differentiation of the pick law, one token at a time."""

    def pick_of(log_factors: Array) -> tuple[Array, Array]:
        pick = pick_law(problem, weights * jnp.exp(log_factors))
        return pick, pick

    hessian, pick = jax.jacfwd(pick_of, has_aux=True)(jnp.zeros_like(weights))
    diagonal = jnp.diag(hessian)
    none = jnp.zeros((0, len(weights)), weights.dtype)
    coupling = 0.5 * (hessian + hessian.T) - jnp.diag(diagonal)
    return LawCurvature(pick, diagonal, none, none, coupling)


@dual_objective.register
def _(problem: LawProblem, log_weights: Array) -> Array:
    nodes, measure = quadrature(log_weights.dtype)
    weights = jnp.exp(log_weights)
    moments = problem.law.moments(jnp.exp(-nodes[:, None] * weights[None, :]))
    integral = jnp.sum(measure / nodes * (1 - moments.value))
    return integral - jnp.sum(jnp.where(problem.p > 0, problem.p * log_weights, 0))


@optimal_excess.register
def _(problem: LawProblem, log_weights: Array) -> Array:
    if problem.law.prefix_is_optimal:
        return problem.excess
    # Weights sort the tokens as the optimal subset does: those at the bound are out.
    order = jnp.argsort(log_weights)
    escape = problem.law.escape(order)
    found = best_prefix(problem.p[order], escape, problem.missing).excess
    return jax.lax.stop_gradient(jnp.maximum(found, problem.excess))
