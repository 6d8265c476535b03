"""The tokens that hold a distribution's mass, in no certain order.

After top-k filtering a vocabulary has k tokens with mass, and which they are needs no
comparison of masses.
"""

from __future__ import annotations

import jax

from globalres_jax.base import Array
from globalres_jax.numerics.largest import places_of_largest
from globalres_jax.numerics.members import count, members_first, to_words
from globalres_jax.numerics.rows import by_platform, in_rows


def top_tokens(mass: Array, size: int) -> Array:
    """[size] different tokens with the largest `mass [V] >= 0`, in no certain order.

    Args:
      mass: [V].
      size: at most V. Cheapest if at most this many tokens have mass.
    """

    def by_mass(mass: Array) -> Array:
        return places_of_largest(mass, size)

    def by_counting(mass: Array) -> Array:
        words = to_words(mass > 0)
        return jax.lax.cond(
            count(words) <= size,
            lambda: members_first(words, size),
            lambda: by_mass(mass),
        )

    def tokens(mass: Array) -> Array:
        return by_platform(mass, cpu=by_counting, default=by_mass)

    return in_rows(tokens)(jax.lax.stop_gradient(mass))
