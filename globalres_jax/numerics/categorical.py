"""Drawing tokens by inversion, a level of a tree at a time.

Perturbing every logit with Gumbel noise takes a random number, and two logarithms, for
each token of the vocabulary. Here one pass sums the tokens in groups of 64, those in
groups of 64 and so on, and one uniform number a level finds the way back down. The
rounding of a cumulative sum is that of 64 numbers, whatever the vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import NO_TOKEN, Array

_GROUP = 64


def sample(key: Array, probs: Array) -> Array:
    """One token from `probs [V]` (need not be normalised): [] int32.

    A token of mass zero is never drawn, unless all have none: then it is token 0.
    """
    return sample_independent(key, probs, 1)[0]


def sample_independent(key: Array, probs: Array, num_drafts: int) -> Array:
    """`num_drafts` tokens, each from `probs [V]`: [n] int32."""
    levels = _levels(probs)
    uniforms = jax.random.uniform(key, (num_drafts, len(levels)), probs.dtype)
    return jax.vmap(lambda row: _descend(levels, row))(uniforms)


def sample_without_replacement(key: Array, probs: Array, num_drafts: int) -> Array:
    """Different tokens, each from what the earlier ones left: [n] int32.

    `NO_TOKEN` from where nothing is left.
    """
    depth = len(_levels(probs))

    def draw(left: Array, row: Array) -> tuple[Array, Array]:
        token = _descend(_levels(left), row)
        token = jnp.where(left[token] > 0, token, NO_TOKEN)
        place = jnp.where(token >= 0, token, left.shape[0])
        return left.at[place].set(0, mode="drop"), token

    uniforms = jax.random.uniform(key, (num_drafts, depth), probs.dtype)
    return jax.lax.scan(draw, probs, uniforms)[1]


def _levels(probs: Array) -> list[Array]:
    """Masses [groups, 64] of tokens, of groups of them, ..., of the last 64 groups."""
    levels = [_grouped(probs)]
    while levels[-1].shape[0] > 1:
        levels.append(_grouped(jnp.sum(levels[-1], axis=1)))
    return levels


def _descend(levels: list[Array], uniforms: Array) -> Array:
    """The token that one uniform number a level leads to."""
    group = jnp.zeros((), jnp.int32)
    for depth, level in enumerate(reversed(levels)):
        group = group * _GROUP + _invert(uniforms[depth], level[group])
    return group


def _grouped(mass: Array) -> Array:
    """[ceil(V / 64), 64], padded with zeros."""
    return jnp.pad(mass, (0, -mass.shape[0] % _GROUP)).reshape(-1, _GROUP)


def _invert(uniform: Array, mass: Array) -> Array:
    """The place in `mass [64]` where the cumulative sum passes `uniform []`."""
    cumulative = jnp.cumsum(mass)
    place = jnp.sum(cumulative <= uniform * cumulative[-1])
    # Rounding must not lead past the last place that has mass.
    return jnp.minimum(place, jnp.argmax(cumulative)).astype(jnp.int32)
