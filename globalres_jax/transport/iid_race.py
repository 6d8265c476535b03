"""The race of n i.i.d. drafts from q.

With log(1 + S) = int exp(-t) (1 - exp(-t S)) / t dt, expectations over the drafts are
one-dimensional integrals of E exp(-t sum_j w[X_j]) = phi(t)^n with
phi(t) = sum_i q_i exp(-t w_i), w = exp(a):

    Phi(a)     = int exp(-t) (1 - phi^n) / t dt - p.a
    beta_i     = n int exp(-t) phi^(n-1) q_i w_i exp(-t w_i) dt
    dPhi/da    = beta - p

Draft mass that the arrays given here lack, `1 - sum(q)`, has weight zero: it stays in
phi, which is why phi is formed as 1 - sum_i q_i (1 - exp(-t w_i)).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.powers import power_of_rest
from globalres_jax.numerics.sums import blockwise_sum, product
from globalres_jax.transport.hessian import NodeCurvature
from globalres_jax.transport.quadrature import quadrature
from globalres_jax.transport.subset_selection import optimal_threshold

#: More tokens than this are integrated so many at a time, within a CPU's cache.
_BLOCK = 8192
#: Sums over more tokens than this in one matrix product lose digits in float32.
_CHUNK = 1024
#: The Hessian is integrated on every second node of the coarse grid, to about 2 %.
_STRIDE = 2


class IIDRace(NamedTuple):
    """A `Race` of i.i.d. drafts.

    Attributes:
      p: [k] target probabilities of these tokens (may sum to less than 1).
      q: [k] draft probabilities of these tokens.
      num_drafts: [] n, in the dtype of `p`.
      excess: [] Q(H*) - p(H*).
      missing: [] 1 - sum(p), target probability that no draft can serve.
    """

    p: Array
    q: Array
    num_drafts: Array
    excess: Array
    missing: Array

    def pick_law(self, weights: Array) -> Array:
        """beta [k]: the probability that each token is picked, for `weights [k]`."""
        return pick_and_fall(self, weights)[0]

    def curvature(self, weights: Array) -> NodeCurvature:
        """Pick law and Hessian of the dual, for `weights [k]`.

        With x = t w: beta = sum_s c_s q x exp(-x) / t_s, and the factors have rows
        sqrt(C_s) q x exp(-x), on every second node only: the Hessian may err a little.
        Its row sums may not: they are what a common factor of all weights does to
        beta, sum_s c_s q x exp(-x). With them exact and all entries off the diagonal
        negative it is positive semidefinite whatever the nodes.
        """
        n = self.num_drafts
        nodes, measure = quadrature(weights.dtype, "coarse")
        survive, fallen = survival(self.q, weights, nodes)
        scale = n * measure * power_of_rest(fallen, n - 1)
        first, second = product(jnp.stack([scale, scale * nodes]), survive)
        token_scale = self.q * weights

        some = slice(None, None, _STRIDE)
        spacing = _STRIDE * measure[some]
        survive = survive[some]
        # At n = 1 the power is phi ** -1 times zero.
        power = power_of_rest(fallen[some], jnp.maximum(n - 2, 0))
        squared = n * (n - 1) * spacing * nodes[some] * power
        others = product(squared * product(survive, token_scale), survive)
        return NodeCurvature(
            pick=token_scale * first,
            diagonal=token_scale * (second + others),
            survive=survive,
            node_scale=jnp.sqrt(squared),
            token_scale=token_scale,
        )

    def dual_objective(self, log_weights: Array) -> Array:
        """Phi(a) of the race dual; its gradient is `pick_law - p`."""
        nodes, measure = quadrature(log_weights.dtype)
        eps = jnp.finfo(log_weights.dtype).eps
        # 1 - phi^n without cancellation where phi is close to 1.
        fall = -jnp.expm1(-nodes[:, None] * jnp.exp(log_weights)[None, :])
        fallen = blockwise_sum(fall * self.q[None, :])
        survived = self.num_drafts * jnp.log1p(-jnp.minimum(fallen, 1 - eps))
        integral = jnp.sum(measure / nodes * -jnp.expm1(survived))
        return integral - jnp.sum(jnp.where(self.p > 0, self.p * log_weights, 0))

    def best_excess(self, log_weights: Array) -> Array:
        """Q(H*) - p(H*): the sweep over prefixes in q/p has found the best set."""
        del log_weights
        return self.excess


def iid_race(
    p: Array, q: Array, num_drafts: Array, missing: Array
) -> tuple[IIDRace, Array]:
    """The race of i.i.d. drafts, and its subset H* [k] bool.

    Args:
      p: [k] target probabilities.
      q: [k] draft probabilities.
      num_drafts: [] n.
      missing: [] target probability that no draft can serve.
    """
    best = optimal_threshold(p, q, num_drafts, missing)
    return IIDRace(p, q, num_drafts, best.excess, missing), best.members


def survival(q: Array, weights: Array, nodes: np.ndarray) -> tuple[Array, Array]:
    """exp(-t w) [S, k], and 1 - phi [S] from small numbers."""
    survive = jnp.exp(-nodes[:, None] * weights[None, :])
    # Blockwise sums are exact, too, but cost a CPU twice as much.
    starts = range(0, len(q), _CHUNK)
    chunks = [slice(start, start + _CHUNK) for start in starts]
    return survive, sum(product(1 - survive[:, c], q[c]) for c in chunks)


def pick_and_fall(
    race: IIDRace, weights: Array, grid: str = "fine"
) -> tuple[Array, Array]:
    """The pick law beta [k], and 1 - phi [S] at the nodes of a grid."""
    nodes, _ = quadrature(weights.dtype, grid)
    if len(weights) <= _BLOCK:
        survive, fallen = survival(race.q, weights, nodes)
        scale = node_scale(race.num_drafts, fallen, grid)
        return race.q * weights * product(scale, survive), fallen

    # In blocks: [S, k] numbers would be written and read, and may not fit.
    padding = -len(weights) % _BLOCK
    blocks = jnp.pad(weights, (0, padding)).reshape(-1, _BLOCK)
    q_blocks = jnp.pad(race.q, (0, padding)).reshape(-1, _BLOCK)
    falls = jax.lax.map(lambda block: survival(*block, nodes)[1], (q_blocks, blocks))
    fallen = blockwise_sum(falls.T)
    scale = node_scale(race.num_drafts, fallen, grid)
    shares = jax.lax.map(
        lambda block: product(scale, jnp.exp(-nodes[:, None] * block[None])), blocks
    )
    return race.q * weights * shares.reshape(-1)[: len(weights)], fallen


def node_scale(num_drafts: Array, fallen: Array, grid: str) -> Array:
    """[S] n phi^(n-1) exp(-t) dt: beta_i = q_i sum_s node_scale_s w_i exp(-t_s w_i).

    Args:
      num_drafts: [] n.
      fallen: [S] 1 - phi at the nodes of the grid.
      grid: "fine" or "coarse".
    """
    _, measure = quadrature(fallen.dtype, grid)
    return num_drafts * measure * power_of_rest(fallen, num_drafts - 1)
