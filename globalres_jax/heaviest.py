"""The tokens that hold a distribution's mass, found without a sort where possible.

After top-k filtering a vocabulary has k tokens with mass, and which they are needs no
comparison of masses: a bit for each token, 32 bits a word, and the number of bits in
each word lead from the j-th slot to the j-th token. Sorting costs a CPU several times
as much; accelerators sort fast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.batching import in_rows

_BITS = 32


def heaviest(mass: Array, size: int) -> Array:
    """[size] different tokens with the largest `mass [V] >= 0`, in no certain order.

    Args:
      mass: [V].
      size: at most V. No cost of sorting if at most this many tokens have mass.
    """

    def by_sorting(mass: Array) -> Array:
        return jax.lax.top_k(mass, size)[1]

    def by_counting(mass: Array) -> Array:
        held = mass > 0
        few = jnp.sum(held) <= size
        return jax.lax.cond(
            few, lambda: _members_first(held, size), lambda: by_sorting(mass)
        )

    def tokens(mass: Array) -> Array:
        return jax.lax.platform_dependent(mass, cpu=by_counting, default=by_sorting)

    return in_rows(tokens)(jax.lax.stop_gradient(mass))


def _members_first(held: Array, size: int) -> Array:
    """[size] the tokens `held [V]`, ascending, and then others, ascending."""
    bits = jnp.pad(held, (0, -len(held) % _BITS)).reshape(-1, _BITS)
    powers = jnp.uint32(1) << jnp.arange(_BITS, dtype=jnp.uint32)
    words = jnp.sum(jnp.where(bits, powers, 0), axis=1, dtype=jnp.uint32)
    # Among the first `size` tokens are enough that are not held.
    others = ~words[: -(-size // _BITS)]
    word, place = _set_bits(jnp.concatenate([words, others]), size)
    return jnp.where(word < len(words), word, word - len(words)) * _BITS + place


def _set_bits(words: Array, size: int) -> tuple[Array, Array]:
    """Words and places [size] of the first set bits of `words [W]`."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    starts = jnp.cumsum(counts) - counts
    # The slot at which a word starts belongs to it, and so do those up to the next.
    numbers = jnp.arange(len(words), dtype=jnp.int32)
    slots = jnp.where(counts > 0, starts, size)
    word = jnp.zeros(size, jnp.int32).at[slots].max(numbers, mode="drop")
    word = jax.lax.cummax(word)
    rank = jnp.arange(size, dtype=jnp.int32) - starts[word]
    place = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        # How many of the next `width` bits are set: is the bit beyond them?
        part = words[word] >> place.astype(jnp.uint32) & jnp.uint32((1 << width) - 1)
        low = jax.lax.population_count(part).astype(jnp.int32)
        beyond = rank >= low
        rank = jnp.where(beyond, rank - low, rank)
        place = jnp.where(beyond, place + width, place)
    return word, place
