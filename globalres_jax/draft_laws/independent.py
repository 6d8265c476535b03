"""Independent drafts from different draft models."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.validation import as_distribution, is_concrete
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    mass_beyond,
    ratio_order,
    transform,
)
from globalres_jax.numerics.top_tokens import heaviest
from globalres_jax.numerics.categorical import sample
from globalres_jax.numerics.sums import blockwise_sum


class Independent(DraftLaw):
    """Draft j is drawn from `probs[j]`, independently of the others.

    L(u) = prod_j phi_j(u); Q(H) = prod_j q_j(H). For n >= 2 the optimal subset is no
    prefix of a known order; the weights of the solved race give it.

    Attributes:
      probs: [n, V] distributions q_1 .. q_n; rounding in their sums is removed.
      max_support: at most this many tokens of each row are above zero.

    Raises:
      ValueError: a row is no distribution, or has more tokens than promised.
    """

    static = ("max_support",)
    prefix_is_optimal = False

    def __init__(self, probs: Array, max_support: int | None = None):
        probs = as_distribution("probs", probs, ndim=2)
        if max_support is not None:
            if not max_support >= 1:
                raise ValueError(f"max_support: must be at least 1, got {max_support}")
            if is_concrete(probs):
                support = int(jnp.max(jnp.sum(probs > 0, axis=1)))
                if support > max_support:
                    raise ValueError(
                        f"max_support: {support} tokens of a row of probs are above "
                        f"zero, more than {max_support}"
                    )
        self.probs = probs / blockwise_sum(probs)[:, None]
        self.max_support = max_support

    @property
    def num_drafts(self) -> int:
        """Number of drafts n, one of each row."""
        return self.probs.shape[0]

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [n] int32."""
        return jax.vmap(sample)(jax.random.split(key, self.num_drafts), self.probs)

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        return jnp.prod(self.probs[jnp.arange(self.num_drafts), draft_tokens])

    def containment(self, members: Array) -> Array:
        """Q(H) = prod_j q_j(H) for `members [V]` bool."""
        return jnp.prod(jnp.sum(jnp.where(members, self.probs, 0), axis=1))

    def moments(self, survive: Array) -> Moments:
        """Covariance diag(sum_j pi_j) - sum_j pi_j pi_j^T, pi_j = q_j e / phi_j."""
        tiny = jnp.finfo(survive.dtype).tiny
        phi = transform(self.probs[:, None], survive[None])
        value = jnp.prod(phi, axis=0)
        chance = self.probs[:, None] * survive[None] / jnp.maximum(phi, tiny)[..., None]
        minus = jnp.sqrt(jnp.maximum(value, 0))[None, :, None] * chance
        mean = value[:, None] * jnp.sum(chance, axis=0)
        plus = jnp.sum(minus, axis=0, keepdims=True)
        return Moments(value, mean, mean, plus, minus)

    def subset_order(self, p: Array) -> Array:
        """By mean draft probability over p: a bound, in general no optimum."""
        return ratio_order(p, jnp.mean(self.probs, axis=0))

    def escape(self, order: Array) -> Array:
        """[V + 1] 1 - prod_j q_j(H) for the prefixes H."""
        eps = jnp.finfo(self.dtype).eps
        beyond = jax.vmap(mass_beyond)(self.probs[:, order])
        inside = jnp.log1p(-jnp.minimum(beyond, 1 - eps))
        return jnp.where(beyond.max(0) >= 1 - eps, 1, -jnp.expm1(inside.sum(0)))

    def support(self) -> Array | None:
        """[m] union of the rows' tokens, m <= n max_support."""
        size = self.num_drafts * (self.max_support or self.vocab_size)
        if size >= self.vocab_size:
            return None
        return heaviest(jnp.max(self.probs, axis=0), size)
