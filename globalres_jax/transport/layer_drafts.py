"""What is drafted below the nodes of a layer, as the layer's race sees it.

A node's drafts are so many independent *samples* of one law: single draws where drafts
are i.i.d., else the set of all siblings. Asked for are the chance L that no draft of
one sample has rung, and the mean number of drafts of each token that are about to.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.draft_laws import DraftLaw, Moments
from globalres_jax.numerics.sums import contract


class Rings(NamedTuple):
    """One sample of each node at the nodes t of a quadrature, for weights w.

    Attributes:
      fallen: [S, m] 1 - L, L = E Z for Z = exp(-t sum_j w[X_j]).
      rows: [m, S, k], which times `scale` are w E[N_x Z] for N_x drafts of token x.
      scale: [m, k].
    """

    fallen: Array
    rows: Array
    scale: Array


class LayerDrafts(Protocol):
    """A pytree.

    Attributes:
      q: [m, k] mean law of a draft.
      size: drafts of one sample.
    """

    q: Array

    @property
    def size(self) -> int: ...

    def rings(self, weights: Array, nodes: np.ndarray) -> Rings:
        """For `weights [m, k]` and `nodes [S]`."""
        ...

    def escape(self, outside: Array) -> Array:
        """Chance [j, m] that a draft of one sample lies in `outside [j, m, k]`."""
        ...


class SingleDrafts(NamedTuple):
    """Independent draws from rows q: a sample is one of them.

    Attributes:
      q: [m, k].
    """

    q: Array

    @property
    def size(self) -> int:
        """One draft."""
        return 1

    def rings(self, weights: Array, nodes: np.ndarray) -> Rings:
        """1 - phi is summed from small numbers."""
        survive = jnp.exp(-nodes[None, :, None] * weights[:, None, :])
        fallen = contract("vsx,vx->sv", 1 - survive, self.q)
        return Rings(fallen, survive, self.q * weights)

    def escape(self, outside: Array) -> Array:
        """q outside."""
        return jnp.sum(jnp.where(outside, self.q[None], 0), axis=2)


class SampledSets(NamedTuple):
    """Siblings from any law: a sample is the set of them.

    Attributes:
      q: [m, k].
      law: the law of the children of each node, stacked [m].
    """

    q: Array
    law: DraftLaw

    @property
    def size(self) -> int:
        """The law's number of drafts."""
        return self.law.num_drafts

    def rings(self, weights: Array, nodes: np.ndarray) -> Rings:
        """By the law's moments."""
        survive = jnp.exp(-nodes[None, :, None] * weights[:, None, :])
        moments = self.moments(survive)
        return Rings(1 - moments.value.T, moments.mean, weights)

    def escape(self, outside: Array) -> Array:
        """What outside rings at once, and nothing else ever does."""
        survive = jnp.where(outside, 0, 1).astype(self.q.dtype).swapaxes(0, 1)
        return 1 - self.moments(survive).value.T

    def moments(self, survive: Array) -> Moments:
        """Of each node's law, at `survive [m, S, k]`."""
        return jax.vmap(lambda law, e: law.moments(e))(self.law, survive)


def sampled_sets(law: DraftLaw) -> SampledSets:
    """The drafts of laws stacked [m]."""
    counts = jax.vmap(lambda one: one.rough_counts())(law)
    return SampledSets(counts / law.num_drafts, law)
