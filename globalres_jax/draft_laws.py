"""Draft laws: the joint law of the tokens drafted at one position.

A law can be sampled, and answers the two questions that the optimum depends on: the
probability that all drafts lie in a set, and the Laplace functional of their multiset.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.checks import as_distribution, is_concrete
from globalres_jax.summation import blockwise_sum


@jax.tree_util.register_pytree_node_class
class IID:
    """`num_drafts` independent draws from `probs`.

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

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.probs.shape[-1]

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [num_drafts] int32. Needs `num_drafts` to be an int."""
        if not isinstance(self.num_drafts, int | np.integer):
            raise ValueError(
                "num_drafts: sample needs a Python int, since it fixes the shape; "
                f"got {self.num_drafts!r}"
            )
        return jax.random.categorical(
            key, jnp.log(self.probs), shape=(int(self.num_drafts),)
        ).astype(jnp.int32)

    def containment(self, members: Array) -> Array:
        """Q(H), the probability that every draft lies in H (`members [V]` bool)."""
        inside = jnp.sum(jnp.where(members, self.probs, 0))
        return inside**self.num_drafts

    def laplace(self, u: Array) -> Array:
        """L(u) = E exp(-sum_j u[X_j]) for `u [V] >= 0`."""
        return jnp.sum(self.probs * jnp.exp(-u)) ** self.num_drafts

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

    def __repr__(self) -> str:
        return (
            f"IID(probs={self.probs!r}, num_drafts={self.num_drafts!r}, "
            f"max_support={self.max_support!r})"
        )
