"""A fixed set of drafts, as in trees of the likeliest tokens (EAGLE)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.draft_laws.closed_form import ClosedForm, fixed_and_one
from globalres_jax.draft_laws.law import DraftLaw, Moments
from globalres_jax.numerics.top_tokens import top_tokens
from globalres_jax.validation import is_concrete


class Deterministic(DraftLaw):
    """The drafts are always `tokens`, in this order.

    L(u) = exp(-sum of u over the tokens); Q(H) = 1 if H holds them all, else 0.

    Attributes:
      tokens: [n] different tokens.
      vocab_size: V.

    Raises:
      ValueError: no tokens, a token twice, or one outside the vocabulary.
    """

    arrays = ("tokens",)
    static = ("vocab_size",)

    def __init__(self, tokens: Array, vocab_size: int):
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 1 or tokens.size == 0:
            raise ValueError(f"tokens: expected shape [n], got {tokens.shape}")
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens: expected integers, got {tokens.dtype}")
        if is_concrete(tokens):
            host = np.asarray(tokens)
            if len(set(host.tolist())) < len(host):
                raise ValueError(f"tokens: must be different, got {host.tolist()}")
            if host.min() < 0 or host.max() >= vocab_size:
                raise ValueError(
                    f"tokens: must lie in [0, {vocab_size}), got {host.tolist()}"
                )
        self.tokens = tokens.astype(jnp.int32)
        self.vocab_size = vocab_size

    @property
    def num_drafts(self) -> int:
        """Number of drafts n."""
        return self.tokens.shape[-1]

    @property
    def token_probs(self) -> Array:
        """[n] all of it on the first token: q, if there is one."""
        return jnp.zeros(self.num_drafts, self.dtype).at[0].set(1)

    @property
    def dtype(self) -> jnp.dtype:
        """The widest type enabled: there are no probabilities to take it from."""
        return jnp.zeros(()).dtype

    def sample(self, key: Array) -> Array:
        """The tokens: [n] int32. The key is not used."""
        del key
        return self.tokens

    def draw(self, numbers: Array) -> Array:
        """The tokens: [n] int32. The numbers are not used."""
        del numbers
        return self.tokens

    def draft_probability(self, draft_tokens: Array) -> Array:
        """1 for the tokens in their order, else 0."""
        return jnp.all(draft_tokens == self.tokens).astype(self.dtype)

    def containment(self, members: Array) -> Array:
        """1 if H (`members [n]` bool) holds every token, else 0."""
        return jnp.all(members).astype(self.dtype)

    def moments(self, survive: Array) -> Moments:
        """All counts are 1."""
        value = jnp.prod(survive, axis=1)
        return Moments(value, jnp.broadcast_to(value[:, None], survive.shape))

    def closed_form(self, p: Array) -> ClosedForm:
        """The optimal race, without a solver."""
        return fixed_and_one(p, jnp.ones(p.shape, bool), jnp.zeros_like(p))

    def subset_order(self, p: Array) -> Array:
        """Any: only the set of all tokens has Q(H) > 0."""
        return jnp.arange(len(p))

    def escape(self, order: Array) -> Array:
        """[n + 1] 0 for the prefix that holds every token, 1 before."""
        return (jnp.arange(len(order) + 1) < self.num_drafts).astype(self.dtype)


def likeliest(
    probs: Array, num_drafts: int, max_support: int | None = None
) -> Deterministic:
    """`Deterministic` on the `num_drafts` likeliest tokens of `probs [V]` (EAGLE)."""
    del max_support
    probs = jnp.asarray(probs)
    return Deterministic(top_tokens(probs, num_drafts), probs.shape[-1])
