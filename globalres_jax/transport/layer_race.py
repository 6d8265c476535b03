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

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.powers import log_of_rest
from globalres_jax.numerics.sums import blockwise_sum, product
from globalres_jax.transport.derivatives import with_derivatives
from globalres_jax.transport.layer_curvature import LayerCurvature
from globalres_jax.transport.newton import ProjectedNewton
from globalres_jax.transport.pools import log_ratio
from globalres_jax.transport.quadrature import (
    LOG_WEIGHT_BOUND,
    LOG_WEIGHT_FLOOR,
    quadrature,
)
from globalres_jax.transport.race import acceptance_gap, race_weights

#: The Hessian is integrated on every second node of the coarse grid.
_STRIDE = 2
#: Log-weights that may tell the slots that are served in full from the others.
_THRESHOLDS = np.array([24.0, 20.0, 16.0, 12.0, 10.0, 8.0, 6.0, 4.0])
#: The same for t / (n q), before any weight is known.
_RATIOS = np.linspace(-5.0, 0.0, 21)
#: Start: see `newton.start_weights`.
_OVERLOAD = 1.1
_LARGEST_LOG_SHARE = -1e-6
_TINY = 1e-30


class LayerRace(NamedTuple):
    """A `Race` of independent drafts below several nodes.

    Attributes:
      p: [m k] target t of each slot; zero where q is.
      q: [m k] draft probability of each slot, given its node.
      counts: [m] n_v, drafts of each node, in the dtype of `p`; zeros are allowed.
      missing: [] 1 - sum(p), target probability that no draft can serve.
    """

    p: Array
    q: Array
    counts: Array
    missing: Array

    @property
    def num_drafts(self) -> Array:
        """Drafts of all nodes: []."""
        return jnp.sum(self.counts)

    @property
    def excess(self) -> Array:
        """[] Q(H) - p(H) of the set of all slots."""
        return self.missing

    def pick_law(self, weights: Array) -> Array:
        """beta [m k] for `weights [m k]`, on the fine grid."""
        nodes, measure = quadrature(weights.dtype)
        survive, fallen = self._survival(weights, nodes)
        scale = self.counts[None] * measure[:, None] * self._others(fallen)
        share = jnp.einsum("sv,vsx->vx", scale, survive, precision="highest")
        return self.q * weights * share.reshape(-1)

    def curvature(self, weights: Array) -> LayerCurvature:
        """Pick law and Hessian of the dual for `weights [m k]`, on the coarse grid.

        As for i.i.d. drafts the row sums of the Hessian are exact, and all entries off
        its diagonal negative, whatever the nodes: it is positive semidefinite.
        """
        n = self.counts
        nodes, measure = quadrature(weights.dtype, "coarse")
        survive, fallen = self._survival(weights, nodes)
        scale = n[None] * measure[:, None] * self._others(fallen)
        both = jnp.stack([scale, scale * nodes[:, None]])
        first, second = jnp.einsum("isv,vsx->ivx", both, survive, precision="highest")
        token_scale = self._by_node(self.q * weights)

        some = slice(None, None, _STRIDE)
        spacing = (_STRIDE * measure * nodes)[some]
        survive = survive[:, some]
        log_phi = log_of_rest(fallen[some])
        # prod_u phi_u^n_u / (phi_v phi_v') is one of these for v, one for v'.
        half = jnp.exp(0.5 * product(log_phi, n)[:, None] - log_phi)
        half = jnp.where(n[None] > 0, np.sqrt(spacing)[:, None] * half, 0)
        together, alone = n[None] * half, jnp.sqrt(n)[None] * half
        reach = jnp.einsum("vsx,vx->sv", survive, token_scale, precision="highest")
        coupled = product(together * reach, 1 - jnp.eye(len(n), dtype=n.dtype))
        own = jnp.maximum(n - 1, 0)[None] * half * reach
        rows = together * (coupled + own)
        others = jnp.einsum("sv,vsx->vx", rows, survive, precision="highest")
        return LayerCurvature(
            pick=(token_scale * first).reshape(-1),
            diagonal=(token_scale * (second + others)).reshape(-1),
            survive=survive,
            together=together,
            alone=alone,
            token_scale=token_scale,
        )

    def dual_objective(self, log_weights: Array) -> Array:
        """Phi(a) of the race dual; its gradient is `pick_law - p`."""
        nodes, measure = quadrature(log_weights.dtype)
        weights = jnp.where(self.q > 0, jnp.exp(log_weights), 0)
        _, fallen = self._survival(weights, nodes)
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
        ratio = log_ratio(self.p, self._slots(self.counts) * self.q)
        thresholds = jnp.asarray(_RATIOS, ratio.dtype)
        excess, inside_q = self._excess_below(ratio, thresholds)
        best = jnp.argmax(excess)
        least = jnp.maximum(excess[best], np.exp(-0.5 * LOG_WEIGHT_BOUND))
        inside = ratio < thresholds[best]
        needed = jnp.sum(self._by_node(jnp.where(inside, self.p, 0)), axis=1)
        total = jnp.sum(needed)
        others = total - needed / jnp.maximum(self.counts, 1)
        others = jnp.log1p(_OVERLOAD * jnp.maximum(others, 0) / least)
        chance = jnp.log(jnp.maximum(inside_q[best], _TINY))
        chance = chance - jnp.log(total + least)
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

    def _survival(self, weights: Array, nodes: np.ndarray) -> tuple[Array, Array]:
        """exp(-t w) [m, S, k], and 1 - phi [S, m] from small numbers."""
        weights, q = self._by_node(weights), self._by_node(self.q)
        survive = jnp.exp(-nodes[None, :, None] * weights[:, None, :])
        fallen = jnp.einsum("vsx,vx->sv", 1 - survive, q, precision="highest")
        return survive, fallen

    def _others(self, fallen: Array) -> Array:
        """prod_u phi_u^n_u / phi_v, [S, m]: that no draft but one of node v has rung.

        Zero for nodes without drafts.
        """
        number = self.counts[:, None] - jnp.eye(len(self.counts), dtype=fallen.dtype)
        survived = jnp.exp(product(log_of_rest(fallen), jnp.maximum(number, 0)))
        return jnp.where(self.counts[None] > 0, survived, 0)

    def _excess_below(self, keys: Array, thresholds: Array) -> tuple[Array, Array]:
        """Q(H) - p(H) [j], and q_v(H) [j, m], of the sets H of `keys [m k]` below."""
        outside = keys[None] >= thresholds[:, None]
        outside = outside.reshape(len(thresholds), len(self.counts), -1)
        p, q = self._by_node(self.p), self._by_node(self.q)
        beyond_q = jnp.sum(jnp.where(outside, q[None], 0), axis=2)
        beyond_p = jnp.sum(jnp.where(outside, p[None], 0), axis=(1, 2))
        within = product(log_of_rest(beyond_q), self.counts)
        return self.missing + beyond_p + jnp.expm1(within), 1 - beyond_q


class LayerSolution(NamedTuple):
    """Weights of a layer's race, and what they do.

    Attributes:
      weights: [m, k] of each slot.
      pick: [m, k] beta, the probability that each slot is picked.
      reject: [] weight of the slot that stands for no draft.
      gap: [] how far from optimal, at most.
      iterations: [] of the solver.
    """

    weights: Array
    pick: Array
    reject: Array
    gap: Array
    iterations: Array


def solve_layer(
    target: Array, q: Array, counts: Array, solver: ProjectedNewton
) -> LayerSolution:
    """The race of a layer, solved; lossless however far the solver came.

    Args:
      target: [m, k] t, of all slots together at most 1.
      q: [m, k] law of one draft of each node; the drafts are independent.
      counts: [m] integer, drafts of each node; 0 for a node that has none.
      solver: `ProjectedNewton(...)`.
    """
    counts = counts.astype(target.dtype)
    served = (q > 0) & (counts > 0)[:, None]
    target, q = jnp.where(served, target, 0), jnp.where(served, q, 0)
    missing = 1 - blockwise_sum(target.reshape(-1))

    def one_draft() -> LayerSolution:
        # It is picked for sure: no slot stands for no draft.
        gap = jnp.zeros((), target.dtype)
        return LayerSolution(jnp.ones_like(q), q, gap, gap, jnp.zeros((), jnp.int32))

    def several() -> LayerSolution:
        race = LayerRace(target.reshape(-1), q.reshape(-1), counts, missing)
        return _raced(race, solver)

    return jax.lax.cond(jnp.sum(counts) > 1, several, one_draft)


def _raced(race: LayerRace, solver: ProjectedNewton) -> LayerSolution:
    """By iterations, with derivatives."""
    known = jax.lax.stop_gradient(race)
    log_weights, state = solver.run(known.start_weights(), known)
    pick = known.pick_law(race_weights(known, log_weights))
    gap = acceptance_gap(known, log_weights, pick)
    weights, pick = with_derivatives(race, log_weights, pick)
    shape = len(race.counts), -1
    return LayerSolution(
        weights.reshape(shape),
        pick.reshape(shape),
        jnp.ones((), pick.dtype),
        gap,
        jnp.asarray(state.iter_num, jnp.int32),
    )
