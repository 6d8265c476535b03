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
from globalres_jax.numerics.rows import in_rows
from globalres_jax.numerics.sums import running_sums

_BITS = 32


def top_tokens(mass: Array, size: int) -> Array:
    """[size] different tokens with the largest `mass [V] >= 0`, in no certain order.

    Args:
      mass: [V].
      size: at most V. No cost of sorting if at most this many tokens have mass.
    """

    def by_sorting(mass: Array) -> Array:
        return jax.lax.top_k(mass, size)[1]

    def by_counting(mass: Array) -> Array:
        words = _words(mass > 0)
        few = jnp.sum(jax.lax.population_count(words)) <= size
        return jax.lax.cond(
            few, lambda: _members_first(words, size), lambda: by_sorting(mass)
        )

    def tokens(mass: Array) -> Array:
        return jax.lax.platform_dependent(mass, cpu=by_counting, default=by_sorting)

    return in_rows(tokens)(jax.lax.stop_gradient(mass))


def largest(values: Array, size: int) -> tuple[Array, Array]:
    """The `size` largest of `values [..., V]` and their places: [..., size] each."""
    return jax.lax.top_k(values, size)


def _words(held: Array) -> Array:
    """[W] uint32, a bit for each of the tokens `held [V]`."""
    bits = jnp.pad(held, (0, -len(held) % _BITS)).reshape(-1, _BITS)
    powers = jnp.uint32(1) << jnp.arange(_BITS, dtype=jnp.uint32)
    return jnp.sum(jnp.where(bits, powers, 0), axis=1, dtype=jnp.uint32)


def _members_first(words: Array, size: int) -> Array:
    """[size] the tokens in `words [W]`, ascending, and then others, ascending."""
    # Among the first `size` tokens are enough that are not held.
    others = ~words[: -(-size // _BITS)]
    word, place = _set_bits(jnp.concatenate([words, others]), size)
    return jnp.where(word < len(words), word, word - len(words)) * _BITS + place


def _set_bits(words: Array, size: int) -> tuple[Array, Array]:
    """Words and places [size] of the first set bits of `words [W]`."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    ends = _counted(counts)
    # A slot's word is the number of words that end at or before it.
    word = _counted(jnp.zeros(size, jnp.int32).at[ends].add(1, mode="drop"))
    rank = jnp.arange(size, dtype=jnp.int32) - (ends - counts)[word]
    left = words[word]

    def halve(carry, width):
        # How many of the next `width` bits are set: is the bit beyond them?
        rank, place = carry
        part = (left >> place) & ((jnp.uint32(1) << width) - 1)
        low = jax.lax.population_count(part).astype(jnp.int32)
        beyond = rank >= low
        rank = jnp.where(beyond, rank - low, rank)
        return (rank, jnp.where(beyond, place + width, place)), None

    # One loop step at a time is too little work for XLA to wake another thread for.
    widths = jnp.asarray([16, 8, 4, 2, 1], jnp.uint32)
    (_, place), _ = jax.lax.scan(halve, (rank, jnp.zeros_like(left)), widths)
    return word, place.astype(jnp.int32)


def _counted(counts: Array) -> Array:
    """[m] int32 running sums of `counts [m]`; float32 is exact up to 16 million."""
    rows = jnp.pad(counts.astype(jnp.float32), (0, -len(counts) % _BITS))
    sums = running_sums(rows.reshape(-1, _BITS))
    return sums.reshape(-1)[: len(counts)].astype(jnp.int32)
