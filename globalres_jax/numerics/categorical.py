"""Drawing tokens by inversion, a level of a tree at a time.

Perturbing every logit with Gumbel noise takes a random number, and two logarithms, for
each token of the vocabulary. Here one pass sums the tokens in groups of 256, those in
groups of 256 and so on, and one uniform number a level finds the way back down. The
rounding of a cumulative sum is that of 256 numbers, whatever the vocabulary.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array
from globalres_jax.numerics.sums import blockwise_sum, product

#: So few numbers that a cumulative sum of them loses nothing, and so many that most
#: vocabularies take two levels: each is compiled on its own.
_GROUP = 256

#: One draw takes so many uniform numbers, one a level: enough for 256^4 tokens.
UNIFORMS = 4


def uniforms(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Random numbers for draws of that shape: [*shape, UNIFORMS].

    A program compiles each call of the random number generator anew, and takes four
    times as long for an array of many small axes: so what draws often draws all of its
    numbers at once, and they are drawn in a line.
    """
    shape = (*shape, UNIFORMS)
    return jax.random.uniform(key, (math.prod(shape),), dtype).reshape(shape)


def sample(key: Array, probs: Array) -> Array:
    """One token from `probs [V]` (need not be normalised): [] int32.

    A token of mass zero is never drawn, unless all have none: then it is token 0.
    """
    return draw(uniforms(key, (), probs.dtype), probs)


def draw(numbers: Array, probs: Array) -> Array:
    """`sample` from uniform `numbers [UNIFORMS]`."""
    return _descend(_levels(probs), numbers)


def draw_independent(numbers: Array, probs: Array) -> Array:
    """One token from `probs [V]` for each of `numbers [n, UNIFORMS]`: [n] int32."""
    levels = _levels(probs)
    return jax.vmap(lambda row: _descend(levels, row))(numbers)


def draw_without_replacement(numbers: Array, probs: Array) -> Array:
    """Different tokens, each from what the earlier ones left: [n] int32.

    `NO_TOKEN` from where nothing is left. Needs `numbers [n, UNIFORMS]`.
    """

    def one(left: Array, row: Array) -> tuple[Array, Array]:
        token = draw(row, left)
        token = jnp.where(left[token] > 0, token, NO_TOKEN)
        place = jnp.where(token >= 0, token, left.shape[0])
        return left.at[place].set(0, mode="drop"), token

    return jax.lax.scan(one, probs, numbers)[1]


def _levels(probs: Array) -> list[Array]:
    """Masses [groups, 256] of tokens, of groups of them, and so on; the last [1, m]."""
    levels, mass = [], probs
    while mass.shape[0] > _GROUP:
        padding = -mass.shape[0] % _GROUP
        levels.append(jnp.pad(mass, (0, padding)).reshape(-1, _GROUP))
        mass = blockwise_sum(levels[-1])
    return [*levels, mass[None]]


def _descend(levels: list[Array], numbers: Array) -> Array:
    """The token that one uniform number a level leads to."""
    # Numbers come as multiples of eps; those that no level needs fill the gaps.
    spare = UNIFORMS - len(levels)
    finer = numbers[::-1][:spare] * jnp.finfo(numbers.dtype).eps
    group = jnp.zeros((), jnp.int32)
    for depth, level in enumerate(reversed(levels)):
        uniform = numbers[depth] + (finer[depth] if depth < spare else 0)
        group = group * _GROUP + _invert(uniform, level[group])
    return group


def _invert(uniform: Array, mass: Array) -> Array:
    """The place in `mass [m]` where the cumulative sum passes `uniform []`."""
    # By a triangle of ones, which compiles faster than XLA's cumulative sum.
    cumulative = product(mass, np.tri(len(mass), dtype=mass.dtype).T)
    # Rounding must lead to no place without mass, and not past the last that has some.
    # So: the first place that is passed, else the last with mass, else 0, as the
    # largest of one number each.
    place, size = jnp.arange(len(mass), dtype=jnp.int32), len(mass)
    rank = jnp.where(cumulative > uniform * cumulative[-1], 2 * size - place, place + 1)
    best = jnp.max(jnp.where(mass > 0, rank, 0))
    return jnp.where(best > size, 2 * size - best, jnp.maximum(best - 1, 0))
