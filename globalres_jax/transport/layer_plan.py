"""Solving the race of a layer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.rows import with_types_of
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport.derivatives import with_derivatives
from globalres_jax.transport.layer_drafts import LayerDrafts
from globalres_jax.transport.layer_race import LayerRace
from globalres_jax.transport.newton import ProjectedNewton
from globalres_jax.transport.race import acceptance_gap, race_weights


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
    target: Array,
    drafts: LayerDrafts,
    counts: Array,
    solver: ProjectedNewton,
    one_at_most: bool = False,
) -> LayerSolution:
    """The race of a layer, solved; lossless however far the solver came.

    Args:
      target: [m, k] t, of all slots together at most 1.
      drafts: a sample of each node; all samples are independent.
      counts: [m] integer, samples of each node; 0 for a node that has none.
      solver: `ProjectedNewton(...)`.
      one_at_most: whether the layer has no more than one draft, whatever the counts:
        then nothing else is compiled.
    """
    served = (drafts.q > 0) & (counts > 0)[:, None]
    target = jnp.where(served, target, 0)
    missing = 1 - blockwise_sum(target.reshape(-1))

    def one_draft() -> LayerSolution:
        # It is picked for sure: no slot stands for no draft.
        zero = jnp.zeros((), target.dtype)
        pick = jnp.where(served, drafts.q, 0)
        weights, none = jnp.ones_like(target), jnp.zeros((), jnp.int32)
        return LayerSolution(weights, pick, zero, zero, none)

    def several() -> LayerSolution:
        number = counts.astype(target.dtype)
        race = LayerRace(target.reshape(-1), drafts, number, missing)
        return with_types_of(one_draft(), _raced(race, solver))

    if one_at_most:
        return one_draft()
    return jax.lax.cond(drafts.size * jnp.sum(counts) > 1, several, one_draft)


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
