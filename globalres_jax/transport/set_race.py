"""The race of a layer whose nodes have dependent siblings, from any draft law.

With L_v the chance that no draft of node v's set has rung, M_v = E[N Z] / L_v its mean
counts and all the nodes' sets independent, second moments are

    E[N_i N_j Z] = prod_u L_u (M_i M_j + [same node] (E_v[N_i N_j Z] / L_v - M_i M_j))
"""

from __future__ import annotations

import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.powers import log_of_rest
from globalres_jax.numerics.sums import contract
from globalres_jax.transport.hessian import (
    DENSE_UP_TO,
    FactorCurvature,
    dense_curvature,
)
from globalres_jax.transport.layer_race import LayerRace
from globalres_jax.transport.quadrature import quadrature


class SetRace(LayerRace):
    """A `LayerRace` of `SampledSets`."""

    def curvature(self, weights: Array) -> FactorCurvature:
        """Pick law and Hessian of the dual for `weights [m k]`, on the coarse grid."""
        if not self.drafts.law.exact_moments and len(weights) <= DENSE_UP_TO:
            return dense_curvature(self.pick_law, weights)
        nodes, measure = quadrature(weights.dtype, "coarse")
        by_node = self._by_node(weights)
        survive = jnp.exp(-nodes[None, :, None] * by_node[:, None, :])
        moments = self.drafts.moments(survive)

        n, spacing = self.counts, measure * nodes
        fallen = 1 - moments.value.T
        scale = n[None] * self._others(fallen)
        pick = by_node * contract("sv,vsx->vx", measure[:, None] * scale, moments.mean)
        own = contract("sv,vsx->vx", spacing[:, None] * scale, moments.diagonal)
        half = self._roots(log_of_rest(fallen), spacing)
        mean = moments.mean * by_node[:, None, :]
        together = contract("sv,vsx->svx", n[None] * half, mean)
        alone = contract("sv,vsx->vsx", jnp.sqrt(n)[None] * half, mean)
        inside = jnp.sqrt(spacing[:, None] * scale).T[:, None, :, None]
        inside = inside * by_node[:, None, None, :]
        plus, minus = inside * moments.plus, inside * moments.minus
        joint = together.reshape(len(nodes), -1)
        return FactorCurvature(
            pick=pick.reshape(-1),
            diagonal=(pick - by_node * by_node * own).reshape(-1),
            plus=jnp.concatenate([joint, _blocks(plus)]),
            minus=jnp.concatenate([_blocks(alone[:, None]), _blocks(minus)]),
        )


def _blocks(rows: Array) -> Array:
    """Rows [m, a, S, k] of each node as rows over all slots: [m a S, m k]."""
    count, size = rows.shape[0], rows.shape[-1]
    rows = rows.reshape(count, -1, 1, size)
    eye = jnp.eye(count, dtype=rows.dtype)[:, None, :, None]
    return (eye * rows).reshape(-1, count * size)
