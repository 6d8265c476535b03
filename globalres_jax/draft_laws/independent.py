"""Independent drafts from different draft models."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    checked_row,
    normalized,
    ratio_order,
    transform,
)
from globalres_jax.numerics.categorical import draw
from globalres_jax.numerics.sums import mass_beyond
from globalres_jax.numerics.top_tokens import top_tokens


class Independent(DraftLaw):
    """Draft j is drawn from `probs[j]`, independently of the others.

    L(u) = prod_j phi_j(u); Q(H) = prod_j q_j(H). For n >= 2 the optimal subset is no
    prefix of a known order; the weights of the solved race give it.

    Args:
      probs: [n, V] distributions q_1 .. q_n; rounding in their sums is removed.
      max_support: k; the law is on the `n k` tokens likeliest in any row, which are
        all where no row has more than k tokens above zero.

    Raises:
      ValueError: a row is no distribution, or more than `max_support` of its tokens
        have probability above zero. (Traced rows lose what is beyond.)
    """

    static = ("vocab_size",)
    prefix_is_optimal = False

    def __init__(self, probs: Array, max_support: int | None = None):
        probs = checked_row(probs, max_support, ndim=2)
        self.vocab_size = probs.shape[-1]
        self.tokens, self.token_probs = None, normalized(probs)
        if max_support is not None and max_support < self.vocab_size:
            self._hold_union(max_support)

    def _hold_union(self, max_support: int) -> None:
        """Holds the likeliest tokens of all rows together, `max_support` for each."""
        size = min(self.num_drafts * max_support, self.vocab_size)
        if size < self.vocab_size:
            self.tokens = top_tokens(jnp.max(self.token_probs, axis=0), size)
        self.token_probs = normalized(self.take(self.token_probs))

    @property
    def num_drafts(self) -> int:
        """Number of drafts n, one of each row."""
        return self.token_probs.shape[-2]

    @property
    def first(self) -> Array:
        """[k] law of the first draft."""
        return self.token_probs[0]

    def draw(self, numbers: Array) -> Array:
        """Draws the drafts from uniform `numbers [n, UNIFORMS]`: [n] int32."""
        return self.name_places(jax.vmap(draw)(numbers, self.token_probs))

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        each = jax.vmap(self.lookup)(self.token_probs, draft_tokens[:, None])
        return jnp.prod(each)

    def containment(self, members: Array) -> Array:
        """Q(H) = prod_j q_j(H) for `members [k]` bool."""
        return jnp.prod(jnp.sum(jnp.where(members, self.token_probs, 0), axis=1))

    def moments(self, survive: Array) -> Moments:
        """Covariance diag(sum_j pi_j) - sum_j pi_j pi_j^T, pi_j = q_j e / phi_j."""
        q = self.token_probs[:, None]
        phi = transform(q, survive[None])
        value = jnp.prod(phi, axis=0)
        # Counts weigh phi or less; the square of what is divided by must not vanish,
        # or derivatives are not finite.
        least = jnp.sqrt(jnp.finfo(survive.dtype).tiny)
        divisor = jnp.where(phi > least, phi, jnp.inf)
        chance = q * survive[None] / divisor[..., None]
        minus = jnp.sqrt(jnp.maximum(value, 0))[None, :, None] * chance
        mean = value[:, None] * jnp.sum(chance, axis=0)
        plus = jnp.sum(minus, axis=0, keepdims=True)
        return Moments(value, mean, mean, plus, minus)

    def subset_order(self, p: Array) -> Array:
        """By mean draft probability over p: a bound, in general no optimum."""
        return ratio_order(p, jnp.mean(self.token_probs, axis=0))

    def escape(self, order: Array) -> Array:
        """[k + 1] 1 - prod_j q_j(H) for the prefixes H."""
        eps = jnp.finfo(self.dtype).eps
        beyond = jax.vmap(mass_beyond)(self.token_probs[:, order])
        inside = jnp.log1p(-jnp.minimum(beyond, 1 - eps))
        return jnp.where(beyond.max(0) >= 1 - eps, 1, -jnp.expm1(inside.sum(0)))
