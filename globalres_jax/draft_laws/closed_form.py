"""Optimal race weights without a solver, where all drafts but one are fixed.

Drafts D are always there, and x ~ r is one more. With s_x = min(1, p_x / r_x) and
e = 1 - alpha* = sum_x (r_x - p_x)_+ - p(D), the weights

    w_i = p_i / e  for i in D,        w_x = c s_x / (1 - s_x),        c = 1 + w(D)

pick x with probability r_x w_x / (c + w_x) = min(p_x, r_x), i in D with p_i, and
reject with e: Hu et al.'s optimal rule (arXiv 2502.18779) as a race.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum

#: Stands for 0 where a weight would be infinite; so much acceptance is given up.
_LEAST = 1e-7


class ClosedForm(NamedTuple):
    """A solved race.

    Attributes:
      weights: [V].
      pick: [V] beta, exact for these weights.
      excess: [] Q(H*) - p(H*).
    """

    weights: Array
    pick: Array
    excess: Array


def fixed_and_one(p: Array, fixed: Array, proposal: Array) -> ClosedForm:
    """The optimum for the drafts D and one draw.

    Args:
      p: [V] target probabilities (may sum to less than 1).
      fixed: [V] bool, the tokens of D.
      proposal: [V] r, zero on D; zero everywhere if nothing is drawn.
    """
    nothing = jnp.where(jnp.any(proposal > 0), 0, 1).astype(p.dtype)
    short = blockwise_sum(jnp.maximum(proposal - p, 0))
    excess = jnp.maximum(short + nothing - blockwise_sum(jnp.where(fixed, p, 0)), 0)

    held = jnp.where(fixed, p, 0) / jnp.maximum(excess, _LEAST)
    others = 1 + blockwise_sum(held)
    drawn = (proposal > 0) & (p > 0)
    spare = jnp.where(drawn & (p < proposal), proposal - p, 0)
    spared = jnp.maximum(quotient(spare, proposal), _LEAST)
    single = jnp.where(drawn, others * (1 - spared) / spared, 0)
    beaten = blockwise_sum(proposal / (others + single)) + nothing / others
    pick = jnp.where(drawn, proposal * single / (others + single), held * beaten)
    return ClosedForm(held + single, pick, excess)


def single_draft(p: Array, proposal: Array) -> ClosedForm:
    """The optimum for one draw from `proposal [V]`."""
    return fixed_and_one(p, jnp.zeros(p.shape, bool), proposal)
