"""The Hessian of one node's race dual, and how to solve with it.

It is a diagonal plus a matrix of low rank, one row (or a few) for each node of the
quadrature, so that a Newton step is one factorisation of the smaller side.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import product

#: Sweeps towards factors with the right sums, and how far a token may outweigh all.
_SWEEPS = 6
_LEAST_SHARE = 1e-3


class Curvature(Protocol):
    """Pick law and Hessian of a race's dual.

    Attributes:
      pick: [k] beta.
      diagonal: [k] what a positive matrix G is subtracted from.
    """

    pick: Array
    diagonal: Array

    def solve_scaled(self, root: Array, right: Array) -> Array:
        """`(I - R G R)^-1 right` for the Hessian diag(diagonal) - G, R = diag(root)."""
        ...


class NodeCurvature(NamedTuple):
    """Pick law and Hessian `diag(diagonal) - factors^T factors`.

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
    """Pick law and Hessian `diag(diagonal) - plus^T plus + minus^T minus`.

    Attributes:
      pick: [k] beta.
      diagonal: [k].
      plus: [A, k].
      minus: [B, k].
    """

    pick: Array
    diagonal: Array
    plus: Array
    minus: Array

    def solve_scaled(self, root: Array, right: Array) -> Array:
        """`(I - R (plus^T plus - minus^T minus) R)^-1 right`, R = diag(root)."""
        plus, minus = self.plus * root[None], self.minus * root[None]
        if len(root) <= 2 * (len(plus) + len(minus)):
            gram = product(plus.T, plus) - product(minus.T, minus)
            return solve_identity_minus(gram, right)

        # By Woodbury (I + B^T B)^-1 = I - B^T (I + B B^T)^-1 B for B = minus, and
        # (G - A^T A)^-1 = G^-1 + G^-1 A^T (I - A G^-1 A^T)^-1 A G^-1 for A = plus.
        columns = jnp.concatenate([right[:, None], plus.T], axis=1)
        inner = solve_identity_minus(-product(minus, minus.T), product(minus, columns))
        columns = columns - product(minus.T, inner)
        start, spread = columns[:, 0], columns[:, 1:]
        middle = solve_identity_minus(product(plus, spread), product(plus, start))
        return start + product(spread, middle)


def relative_counts(mean: Array, value: Array) -> Array:
    """E[N Z] / L for `mean [..., S, k]` and L = `value [..., S]`; 0 where L is."""
    tiny = jnp.finfo(value.dtype).tiny
    scale = jnp.where(value > tiny, 1 / jnp.maximum(value, tiny), 0)
    return mean * scale[..., None]


def pair_factors(counts: Array, num_drafts: int) -> Array:
    """x [..., S, k] with (1 - 1/n) x_i x_j about E[N_i N_j Z] / L for i != j.

    Of n drafts, n - 1 are others than one that is token i: the factors are to solve
    x_i (sum_j x_j - x_i) = n E[N_i Z] / L. For i.i.d. drafts they are the counts.

    Args:
      counts: [..., S, k] E[N_i Z] / L.
      num_drafts: n.
    """
    counts = jnp.minimum(counts, num_drafts)
    factors = counts
    for _ in range(_SWEEPS):
        total = jnp.sum(factors, axis=-1, keepdims=True)
        others = jnp.maximum(total - factors, _LEAST_SHARE * total)
        wanted = num_drafts * counts / jnp.where(total > 0, others, 1)
        factors = jnp.sqrt(factors * wanted)
    return factors


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
