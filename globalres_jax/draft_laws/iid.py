"""Independent draws from one distribution."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.validation import as_distribution, is_concrete
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    mass_beyond,
    no_factors,
    ratio_order,
    root_scale,
    transform,
)
from globalres_jax.numerics.categorical import sample_independent
from globalres_jax.numerics.sums import blockwise_sum


class IID(DraftLaw):
    """`num_drafts` independent draws from `probs`.

    L(u) = phi(u)^n with phi(u) = sum_i q_i exp(-u_i); Q(H) = q(H)^n.

    Attributes:
      probs: [V] the draft model's distribution q; rounding in its sum is removed.
      num_drafts: an `int` is part of the type (it fixes shapes and lets `sample`
        run); an integer array is data, so one compiled solve serves every n.
      max_support: at most this many tokens have probability above zero (as after
        top-k filtering); the transport solve then runs on those alone.

    Raises:
      ValueError: `probs` is no distribution, `num_drafts < 1`, or more than
        `max_support` tokens have probability above zero.
    """

    def __init__(
        self, probs: Array, num_drafts: int | Array, max_support: int | None = None
    ):
        probs = as_distribution("probs", probs)
        if is_concrete(num_drafts):
            if np.ndim(num_drafts) != 0 or int(num_drafts) != num_drafts:
                raise ValueError(f"num_drafts: expected an integer, got {num_drafts!r}")
            if num_drafts < 1:
                raise ValueError(f"num_drafts: must be at least 1, got {num_drafts}")
        if max_support is not None and not max_support >= 1:
            raise ValueError(f"max_support: must be at least 1, got {max_support}")
        if max_support is not None and is_concrete(probs):
            support = int(jnp.sum(probs > 0))
            if support > max_support:
                raise ValueError(
                    f"max_support: {support} tokens of probs are above zero, "
                    f"more than {max_support}"
                )
        self.probs = probs / blockwise_sum(probs)
        self.num_drafts = num_drafts
        self.max_support = max_support

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [num_drafts] int32. Needs `num_drafts` to be an int."""
        if not isinstance(self.num_drafts, int | np.integer):
            raise ValueError(
                "num_drafts: sample needs a Python int, since it fixes the shape; "
                f"got {self.num_drafts!r}"
            )
        return sample_independent(key, self.probs, int(self.num_drafts))

    def containment(self, members: Array) -> Array:
        """Q(H), the probability that every draft lies in H (`members [V]` bool)."""
        inside = jnp.sum(jnp.where(members, self.probs, 0))
        return inside**self.num_drafts

    def moments(self, survive: Array) -> Moments:
        """Counts of n multinomial trials with chances q e / phi."""
        n = self.num_drafts
        phi = transform(self.probs[None], survive)
        value = phi**n
        chance = self.probs[None] * survive * jnp.square(root_scale(phi))[:, None]
        mean = n * value[:, None] * chance
        plus = jnp.sqrt(n * (n - 1) * value)[:, None] * chance
        return Moments(value, mean, mean, plus[None], no_factors(survive))

    def subset_order(self, p: Array) -> Array:
        """By q/p descending."""
        return ratio_order(p, self.probs)

    def escape(self, order: Array) -> Array:
        """[V + 1] 1 - q(H)^n for the prefixes H."""
        return escape_of(mass_beyond(self.probs[order]), self.num_drafts)

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order."""
        return jnp.prod(self.probs[draft_tokens])

    def tree_flatten(self):
        """Children and static part, as `jax.tree_util` wants them."""
        if isinstance(self.num_drafts, int | np.integer):
            return (self.probs,), (int(self.num_drafts), self.max_support)
        return (self.probs, self.num_drafts), (None, self.max_support)

    @classmethod
    def tree_unflatten(cls, static, children):
        """Inverse of `tree_flatten`; checks nothing, as JAX requires."""
        law = object.__new__(cls)
        num_drafts, law.max_support = static
        law.probs = children[0]
        law.num_drafts = children[1] if num_drafts is None else num_drafts
        return law


def escape_of(left: Array, num_drafts: int | Array) -> Array:
    """1 - (1 - left)^n, exact for small `left`."""
    inside = jnp.log1p(-jnp.minimum(left, 1 - jnp.finfo(left.dtype).eps))
    return -jnp.expm1(num_drafts * inside)
