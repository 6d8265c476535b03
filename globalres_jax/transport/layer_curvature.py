"""The Hessian of a layer's race, and how to solve with it.

With G_v [S, k] the rows q_v(x) x exp(-x), x = t_s w, of node v's own slots, and
diagonal matrices A_v, B_v of one number for each node s of the quadrature,

    Hessian = diag - A^T A + B^T B,    A = [A_1 G_1 ... A_m G_m],    B = blocks B_v G_v

A is what all drafts do to each other, and B takes away what each would do to itself.
diag + B^T B falls apart into the tree's nodes, and A has S rows, whatever m: a Newton
step is a factorisation of S by S numbers for each node and one for all.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.sums import contract, product
from globalres_jax.transport.hessian import solve_identity_minus


class LayerCurvature(NamedTuple):
    """Pick law and Hessian of a layer's race.

    Attributes:
      pick: [m k] beta.
      diagonal: [m k].
      rows: [m, S, k] of each node, to be scaled.
      together: [S, m] A.
      alone: [S, m] B.
      scale: [m, k]; G is `rows` times this.
    """

    pick: Array
    diagonal: Array
    rows: Array
    together: Array
    alone: Array
    scale: Array

    def coupling(self, root: Array) -> Array:
        """`R (A^T A - B^T B) R`, entry by entry, for R = diag(root): [m k, m k]."""
        scale = self.scale * root.reshape(self.scale.shape)
        rows = (self.rows * scale[:, None, :]).swapaxes(0, 1)
        together = (self.together[:, :, None] * rows).reshape(len(rows), -1)
        alone = (self.alone[:, :, None] * rows).reshape(len(rows), -1)
        owner = np.repeat(np.arange(len(scale)), scale.shape[1])
        own = jnp.where(owner[:, None] == owner[None], product(alone.T, alone), 0)
        return product(together.T, together) - own

    def solve_scaled(self, root: Array, right: Array) -> Array:
        """`(I - R (A^T A - B^T B) R)^-1 right` for R = diag(root): [m k]."""
        if len(root) <= len(self.together):
            return solve_identity_minus(self.coupling(root), right)
        scale = self.scale * root.reshape(self.scale.shape)
        right = right.reshape(scale.shape)
        a, b = self.together.T[:, :, None], self.alone.T[:, :, None]
        gram = contract("vsx,vtx->vst", self.rows * (scale * scale)[:, None], self.rows)
        pushed = contract("vsx,vx->vs", self.rows, scale * right)[:, :, None]

        # 1. G (I + B^T B)^-1 G^T, and the same of the right side, by Woodbury.
        columns = jnp.concatenate([gram * a.swapaxes(1, 2), pushed], axis=2)
        inner = jax.vmap(solve_identity_minus)(
            -b * gram * b.swapaxes(1, 2), b * columns
        )
        shrunk = columns - product(gram, b * inner)
        # 2. What all drafts do to each other.
        middle = jnp.sum(a * shrunk, axis=0)
        z = solve_identity_minus(middle[:, :-1], middle[:, -1])
        # 3. Back.
        taken = b[:, :, 0] * (inner[:, :, -1] + product(inner[:, :, :-1], z))
        combined = a[:, :, 0] * z[None] - taken
        step = right + scale * contract("vsx,vs->vx", self.rows, combined)
        return step.reshape(-1)
