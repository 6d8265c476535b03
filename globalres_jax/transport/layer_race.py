"""The race of a whole layer of a token tree: drafts from several rows for one pick.

Nodes v = 1..m of one depth have n_v independent drafts each, from their own rows q_v.
The slots of the race are the pairs (v, x) of a node and a token below it, the target is
a sub-distribution over them, t_vx = w_v p_v(x), and of all drafts of the layer at most
one is picked. As in `iid_race` everything is an integral over one clock, with
phi_v(t) = sum_x q_v(x) exp(-t w_vx):

    E exp(-t sum_j w[X_j]) = prod_v phi_v^n_v
    beta_vx = n_v q_v(x) int exp(-t) w exp(-t w) prod_u phi_u^n_u / phi_v dt

Arrays over the slots are [m k], node after node, so that `ProjectedNewton` takes a
layer for a race like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.powers import log_of_rest
from globalres_jax.numerics.sums import contract, product
from globalres_jax.transport.hessian import pair_factors, relative_counts
from globalres_jax.transport.layer_curvature import LayerCurvature
from globalres_jax.transport.layer_drafts import LayerDrafts
from globalres_jax.transport.pools import log_ratio
from globalres_jax.transport.quadrature import (
    LOG_WEIGHT_BOUND,
    LOG_WEIGHT_FLOOR,
    quadrature,
)

#: The Hessian is integrated on every second node of the coarse grid.
_STRIDE = 2
#: Log-weights that may tell the slots that are served in full from the others.
_THRESHOLDS = np.array([24.0, 20.0, 16.0, 12.0, 10.0, 8.0, 6.0, 4.0])
#: The same for t / (n q), before any weight is known.
_RATIOS = np.linspace(-5.0, 0.0, 21)
#: Start: see `newton.start_weights`.
_OVERLOAD = 1.1
_LARGEST_LOG_SHARE = -1e-6


class LayerRace(NamedTuple):
    """A `Race` of independent drafts below several nodes.

    Attributes:
      p: [m k] target t of each slot; zero where q is.
      drafts: a sample of each node.
      counts: [m] n_v, samples of each node, in the dtype of `p`; zeros are allowed.
      missing: [] 1 - sum(p), target probability that no draft can serve.
    """

    p: Array
    drafts: LayerDrafts
    counts: Array
    missing: Array

    @property
    def q(self) -> Array:
        """[m k] mean law of a draft, given its node."""
        return self.drafts.q.reshape(-1)

    @property
    def num_drafts(self) -> Array:
        """Drafts of all nodes: []."""
        return self.drafts.size * jnp.sum(self.counts)

    @property
    def excess(self) -> Array:
        """[] Q(H) - p(H) of the set of all slots."""
        return self.missing

    def pick_law(self, weights: Array) -> Array:
        """beta [m k] for `weights [m k]`, on the fine grid."""
        nodes, measure = quadrature(weights.dtype)
        rings = self.drafts.rings(self._by_node(weights), nodes)
        scale = self.counts[None] * measure[:, None] * self._others(rings.fallen)
        return (rings.scale * contract("sv,vsx->vx", scale, rings.rows)).reshape(-1)

    def curvature(self, weights: Array) -> LayerCurvature:
        """Pick law and Hessian of the dual for `weights [m k]`, on the coarse grid.

        As for one node the row sums of the Hessian are exact, and all entries off its
        diagonal negative, whatever the nodes of the grid: it is positive semidefinite.
        Exact for single drafts; of larger samples second moments are those of
        `pair_factors`.
        """
        n, size = self.counts, self.drafts.size
        nodes, measure = quadrature(weights.dtype, "coarse")
        rings = self.drafts.rings(self._by_node(weights), nodes)
        scale = n[None] * measure[:, None] * self._others(rings.fallen)
        both = jnp.stack([scale, scale * nodes[:, None]])
        first, second = contract("isv,vsx->ivx", both, rings.rows)

        some = slice(None, None, _STRIDE)
        spacing = (_STRIDE * measure * nodes)[some]
        rows, log_phi = rings.rows[:, some], log_of_rest(rings.fallen[some])
        if size > 1:
            value = jnp.exp(log_phi).T
            pairs = pair_factors(relative_counts(rows, value), size)
            rows = value[..., None] * pairs
        half = self._roots(log_phi, spacing)
        together, alone = n[None] * half, jnp.sqrt(n / size)[None] * half
        reach = contract("vsx,vx->sv", rows, rings.scale)
        coupled = product(together * reach, 1 - jnp.eye(len(n), dtype=n.dtype))
        own = jnp.maximum(n - 1 / size, 0)[None] * half * reach
        others = contract("sv,vsx->vx", together * (coupled + own), rows)
        return LayerCurvature(
            pick=(rings.scale * first).reshape(-1),
            diagonal=(rings.scale * (second + others)).reshape(-1),
            rows=rows,
            together=together,
            alone=alone,
            scale=rings.scale,
        )

    def dual_objective(self, log_weights: Array) -> Array:
        """Phi(a) of the race dual; its gradient is `pick_law - p`."""
        nodes, measure = quadrature(log_weights.dtype)
        weights = jnp.where(self.q > 0, jnp.exp(log_weights), 0)
        fallen = self.drafts.rings(self._by_node(weights), nodes).fallen
        survived = product(log_of_rest(fallen), self.counts)
        integral = jnp.sum(measure / nodes * -jnp.expm1(survived))
        return integral - jnp.sum(jnp.where(self.p > 0, self.p * log_weights, 0))

    def best_excess(self, log_weights: Array) -> Array:
        """Largest Q(H) - p(H) among sets of the slots of smallest weight: []."""
        thresholds = _THRESHOLDS.astype(log_weights.dtype)
        return jnp.max(self._excess_below(log_weights, thresholds)[0])

    def start_weights(self) -> Array:
        """Log-weights [m k] to begin with: A outside H, inside by a mean field.

        H is the best set of slots of smallest t / (n q). Given that all drafts are in
        H, of those that are slot (v, x) the share t q_v(H) / (n_v q_v(x) Q(H)) must be
        picked. All drafts of node u together have weight t_u(H) / (Q(H) - t(H)).
        """
        number = self.counts * self.drafts.size
        ratio = log_ratio(self.p, self._slots(number) * self.q)
        thresholds = jnp.asarray(_RATIOS, ratio.dtype)
        excess, escape = self._excess_below(ratio, thresholds)
        best = jnp.argmax(excess)
        least = jnp.maximum(excess[best], np.exp(-0.5 * LOG_WEIGHT_BOUND))
        inside = ratio < thresholds[best]
        needed = jnp.sum(self._by_node(jnp.where(inside, self.p, 0)), axis=1)
        total = jnp.sum(needed)
        others = total - needed / jnp.maximum(number, 1)
        others = jnp.log1p(_OVERLOAD * jnp.maximum(others, 0) / least)
        chance = log_of_rest(escape[best]) / self.drafts.size - jnp.log(total + least)
        share = jnp.minimum(ratio + self._slots(chance), _LARGEST_LOG_SHARE)
        field = self._slots(others) + share - jnp.log(-jnp.expm1(share))
        field = jnp.clip(field, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)
        field = jnp.where(inside, field, LOG_WEIGHT_BOUND)
        return jnp.where(self.p > 0, field, LOG_WEIGHT_FLOOR)

    def _by_node(self, values: Array) -> Array:
        """[m k] to [m, k]."""
        return values.reshape(self.counts.shape[0], -1)

    def _slots(self, values: Array) -> Array:
        """[m] to [m k]: the same for all slots of a node."""
        return jnp.repeat(values, self.p.shape[0] // values.shape[0])

    def _others(self, fallen: Array) -> Array:
        """prod_u phi_u^n_u / phi_v, [S, m]: that no draft but one of node v has rung.

        Zero for nodes without drafts.
        """
        number = self.counts[:, None] - jnp.eye(len(self.counts), dtype=fallen.dtype)
        survived = jnp.exp(product(log_of_rest(fallen), jnp.maximum(number, 0)))
        return jnp.where(self.counts[None] > 0, survived, 0)

    def _roots(self, log_phi: Array, spacing: np.ndarray) -> Array:
        """[S, m]: one for v and one for v' make prod_u phi_u^n_u / (phi_v phi_v') ds.

        Zero for nodes without drafts.
        """
        survived = 0.5 * product(log_phi, self.counts)[:, None]
        root = np.sqrt(spacing)[:, None] * jnp.exp(survived - log_phi)
        return jnp.where(self.counts[None] > 0, root, 0)

    def _excess_below(self, keys: Array, thresholds: Array) -> tuple[Array, Array]:
        """Q(H) - p(H) [j], and 1 - q_v(H) [j, m], of the sets H of `keys [m k]` below.

        Here q_v(H) is of one sample.
        """
        outside = keys[None] >= thresholds[:, None]
        beyond = jnp.sum(jnp.where(outside, self.p[None], 0), axis=1)
        outside = outside.reshape(len(thresholds), len(self.counts), -1)
        escape = self.drafts.escape(outside)
        within = product(log_of_rest(escape), self.counts)
        return self.missing + beyond + jnp.expm1(within), escape
