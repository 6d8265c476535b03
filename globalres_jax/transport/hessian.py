"""The Hessian of the race dual, and how to solve with it.

It is diagonal minus a low rank, one row for each node of a quadrature.
"""

from __future__ import annotations

from functools import partial, singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.transport.iid_race import (
    RaceProblem,
    quadrature,
    survival,
)
from globalres_jax.numerics.powers import power_of_rest
from globalres_jax.numerics.sums import product

#: It is integrated on every second node of the coarse grid, to about 2 %.
_STRIDE = 2


class Curvature(NamedTuple):
    """Pick law and Hessian of the dual, `diag(diagonal) - factors.T @ factors`.

    The factors have one row per quadrature node and are kept as a scaled matrix,
    since reading and writing [S, V] numbers is most of what an iteration costs.

    Attributes:
      pick: [V] beta.
      diagonal: [V].
      survive: [S, V] exp(-t w).
      node_scale: [S].
      token_scale: [V].
    """

    pick: Array
    diagonal: Array
    survive: Array
    node_scale: Array
    token_scale: Array

    @property
    def factors(self) -> Array:
        """[S, V] the low-rank part of the Hessian."""
        return self.node_scale[:, None] * self.survive * self.token_scale[None, :]

    def solve_scaled(self, root: Array, right: Array) -> Array:
        """`(I - F^T F)^-1 right` for the factors F, their columns scaled by `root`.

        One Cholesky factorisation of the smaller side: V by V as it stands, or S by S
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


@singledispatch
def curvature(problem: RaceProblem, weights: Array) -> Curvature:
    """Pick law and Hessian of the dual, for `weights [V]`.

    With x = t w: beta = sum_s c_s q x exp(-x) / t_s, and the factors have rows
    sqrt(C_s) q x exp(-x), on every second node only: the Hessian may err a little.
    Its row sums may not: they are what a common factor of all weights does to beta,
    sum_s c_s q x exp(-x). With them exact and all entries off the diagonal negative it
    is positive semidefinite whatever the nodes.
    """
    n = problem.num_drafts
    nodes, measure = quadrature(weights.dtype, "coarse")
    survive, fallen = survival(problem.q, weights, nodes)
    scale = n * measure * power_of_rest(fallen, n - 1)
    first, second = product(jnp.stack([scale, scale * nodes]), survive)
    token_scale = problem.q * weights

    some = slice(None, None, _STRIDE)
    spacing = _STRIDE * measure[some]
    survive = survive[some]
    # At n = 1 the power is phi ** -1 times zero.
    power = power_of_rest(fallen[some], jnp.maximum(n - 2, 0))
    squared = n * (n - 1) * spacing * nodes[some] * power
    others = product(squared * product(survive, token_scale), survive)
    return Curvature(
        pick=token_scale * first,
        diagonal=token_scale * (second + others),
        survive=survive,
        node_scale=jnp.sqrt(squared),
        token_scale=token_scale,
    )


def solve_identity_minus(gram: Array, right: Array) -> Array:
    """`(I - gram)^-1 right` by Cholesky; not finite where rounding broke it.

    Args:
      gram: [m, m] symmetric.
      right: [m] or [m, k].
    """
    system = jnp.eye(gram.shape[0], dtype=gram.dtype) - gram
    factor = jax.lax.linalg.cholesky(system, symmetrize_input=False)
    half = partial(jax.lax.linalg.triangular_solve, factor, left_side=True, lower=True)
    columns = right.reshape(right.shape[0], -1)
    return half(half(columns), transpose_a=True).reshape(right.shape)
