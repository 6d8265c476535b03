"""The Hessian of a race's dual, and how to solve with it.

It is a diagonal plus a matrix of low rank, one row (or a few) for each node of the
quadrature, so that a Newton step is one factorisation of the smaller side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import product


class NodeCurvature(NamedTuple):
    """Pick law and Hessian of i.i.d. drafts, `diag(diagonal) - factors^T factors`.

    The factors have one row per quadrature node and are kept as a scaled matrix,
    since reading and writing [S, k] numbers is most of what an iteration costs.

    Attributes:
      pick: [k] beta.
      diagonal: [k].
      survive: [S, k] exp(-t w).
      node_scale: [S].
      token_scale: [k].
    """

    pick: Array
    diagonal: Array
    survive: Array
    node_scale: Array
    token_scale: Array

    @property
    def factors(self) -> Array:
        """[S, k] the low-rank part of the Hessian."""
        return self.node_scale[:, None] * self.survive * self.token_scale[None, :]

    def solve_scaled(self, root: Array, right: Array) -> Array:
        """`(I - F^T F)^-1 right` for the factors F, their columns scaled by `root`.

        One Cholesky factorisation of the smaller side: k by k as it stands, or S by S
        by Woodbury, (I - F^T F)^-1 = I + F^T (I - F F^T)^-1 F.
        """
        nodes, survive = self.node_scale, self.survive
        tokens = self.token_scale * root
        if survive.shape[1] <= survive.shape[0]:
            factors = nodes[:, None] * survive * tokens[None, :]
            return solve_identity_minus(product(factors.T, factors), right)
        gram = product(survive * (tokens * tokens)[None, :], survive.T)
        gram = gram * nodes[:, None] * nodes[None, :]
        inner = solve_identity_minus(gram, nodes * product(survive, tokens * right))
        return right + tokens * product(nodes * inner, survive)


class FactorCurvature(NamedTuple):
    """Pick law and Hessian `diag(diagonal) - plus^T plus + minus^T minus`, any drafts.

    Attributes:
      pick: [k] beta.
      diagonal: [k].
      plus: [A, k].
      minus: [B, k].
      coupling: [k, k] the Hessian off its diagonal, where it was worth computing
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


Curvature = NodeCurvature | FactorCurvature


#: Up to so many tokens or slots a Hessian without exact factors is made like this.
DENSE_UP_TO = 64


def dense_curvature(
    pick_law: Callable[[Array], Array], weights: Array
) -> FactorCurvature:
    """By forward differentiation of `pick_law` at `weights [k]`, token by token."""

    def pick_of(log_factors: Array) -> tuple[Array, Array]:
        pick = pick_law(weights * jnp.exp(log_factors))
        return pick, pick

    hessian, pick = jax.jacfwd(pick_of, has_aux=True)(jnp.zeros_like(weights))
    diagonal = jnp.diag(hessian)
    none = jnp.zeros((0, len(weights)), weights.dtype)
    coupling = 0.5 * (hessian + hessian.T) - jnp.diag(diagonal)
    return FactorCurvature(pick, diagonal, none, none, coupling)


def solve_identity_minus(gram: Array, right: Array) -> Array:
    """`(I - gram)^-1 right` by Cholesky; not finite where rounding broke it.

    Args:
      gram: [m, m] symmetric.
      right: [m] or [m, c].
    """
    system = jnp.eye(gram.shape[0], dtype=gram.dtype) - gram
    factor = jax.lax.linalg.cholesky(system, symmetrize_input=False)
    half = partial(jax.lax.linalg.triangular_solve, factor, left_side=True, lower=True)
    columns = right.reshape(right.shape[0], -1)
    return half(half(columns), transpose_a=True).reshape(right.shape)
