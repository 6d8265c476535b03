"""What a solved race depends on: the derivatives of a solution found without them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.transport.jaxopt_interface import known_root
from globalres_jax.transport.race import (
    Race,
    inner_tokens,
    optimality,
    race_weights,
)


def with_derivatives(
    race: Race, log_weights: Array, pick: Array
) -> tuple[Array, Array]:
    """Weights [k] and pick law [k] of a solution, differentiable in the race.

    The condition of optimality gives the log-weights their derivatives, in reverse
    mode.

    Args:
      race: the problem.
      log_weights: [k] the solution; no derivative flows into it.
      pick: [k] its pick law.
    """
    known = jax.lax.stop_gradient(race)
    diagonal = jnp.where(inner_tokens(known, log_weights), pick, 1)
    log_weights = known_root(optimality, log_weights, race, diagonal)
    weights = race_weights(race, log_weights)
    return weights, _as_pick_law(pick, race, weights)


@jax.custom_jvp
def _as_pick_law(pick: Array, race: Race, weights: Array) -> Array:
    """`pick [k]`, known to be `race.pick_law(weights)`, with its derivatives."""
    del race, weights
    return pick


@_as_pick_law.defjvp
def _(primals, tangents):
    def pick_law(race: Race, weights: Array) -> Array:
        return race.pick_law(weights)

    return primals[0], jax.jvp(pick_law, primals[1:], tangents[1:])[1]
