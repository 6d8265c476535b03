"""Which tokens a mask holds, without a scatter or a running count over the vocabulary.

A bit for each token, 32 bits a word, and the number of bits in each word lead from the
j-th slot to the j-th token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.numerics.sums import running_sum

_BITS = 32


def to_words(held: Array) -> Array:
    """[W] uint32, a bit for each of the tokens `held [V]`; W is V / 32, rounded up."""
    bits = jnp.pad(held, (0, -len(held) % _BITS)).reshape(-1, _BITS)
    powers = jnp.uint32(1) << jnp.arange(_BITS, dtype=jnp.uint32)
    return jnp.sum(jnp.where(bits, powers, 0), axis=1, dtype=jnp.uint32)


def count(words: Array) -> Array:
    """[] int32, the number of tokens in `words [W]`."""
    return jnp.sum(jax.lax.population_count(words).astype(jnp.int32))


def members(words: Array, others: Array, size: int) -> Array:
    """[size] the tokens in `words [W]`, ascending, and then those in `others`.

    Slots beyond those of both hold no certain numbers.
    """
    word, place = _set_bits(jnp.concatenate([words, others]), size)
    return jnp.where(word < len(words), word, word - len(words)) * _BITS + place


def members_first(words: Array, size: int) -> Array:
    """[size] the tokens in `words [W]`, ascending, and then others, ascending."""
    # Among the first `size` tokens are enough that are not held.
    return members(words, ~words[: -(-size // _BITS)], size)


def member(words: Array, rank: Array) -> Array:
    """[] the token in `words [W]` that `rank` others are below."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    ends = _counted(counts)
    word = jnp.sum(ends <= rank, dtype=jnp.int32)
    bits = (words[word] >> jnp.arange(_BITS, dtype=jnp.uint32)) & 1
    found = jnp.cumsum(bits.astype(jnp.int32)) + (ends - counts)[word]
    return word * _BITS + jnp.sum(found <= rank, dtype=jnp.int32)


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
    return running_sum(counts.astype(jnp.float32)).astype(jnp.int32)
