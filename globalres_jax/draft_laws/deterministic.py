"""A fixed set of drafts, as in trees of the likeliest tokens (EAGLE)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.validation import is_concrete
from globalres_jax.draft_laws.closed_form import ClosedForm, fixed_and_one
from globalres_jax.draft_laws.law import DraftLaw, Moments, no_factors, root_scale


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
    static = ("_vocab_size",)

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
        self._vocab_size = vocab_size

    @property
    def num_drafts(self) -> int:
        """Number of drafts n."""
        return self.tokens.shape[0]

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self._vocab_size

    @property
    def dtype(self) -> jnp.dtype:
        """The widest type enabled: there are no probabilities to take it from."""
        return jnp.zeros(()).dtype

    def _fixed(self) -> Array:
        return jnp.zeros(self.vocab_size, bool).at[self.tokens].set(True)

    def sample(self, key: Array) -> Array:
        """The tokens: [n] int32. The key is not used."""
        del key
        return self.tokens

    def draft_probability(self, draft_tokens: Array) -> Array:
        """1 for the tokens in their order, else 0."""
        return jnp.all(draft_tokens == self.tokens).astype(self.dtype)

    def containment(self, members: Array) -> Array:
        """1 if H (`members [V]` bool) holds every token, else 0."""
        return jnp.all(members[self.tokens]).astype(self.dtype)

    def moments(self, survive: Array) -> Moments:
        """Counts are constant, so the second moments are one product."""
        value = jnp.prod(survive[:, self.tokens], axis=1)
        mean = value[:, None] * self._fixed()[None]
        plus = mean * root_scale(value)[:, None]
        return Moments(
            value, mean, jnp.zeros_like(mean), plus[None], no_factors(survive)
        )

    def closed_form(self, p: Array) -> ClosedForm:
        """The optimal race, without a solver."""
        return fixed_and_one(p, self._fixed(), jnp.zeros_like(p))

    def subset_order(self, p: Array) -> Array:
        """The tokens first: only a set that holds them all has Q(H) > 0."""
        del p
        return jnp.argsort(~self._fixed())

    def escape(self, order: Array) -> Array:
        """[V + 1] 0 from the prefix on that holds every token, 1 before."""
        held = jnp.cumsum(self._fixed()[order])
        held = jnp.concatenate([jnp.zeros(1, held.dtype), held])
        return (held < self.num_drafts).astype(self.dtype)

    def support(self) -> Array:
        """The tokens."""
        return self.tokens

    def restrict(self, tokens: Array) -> Deterministic:
        """The law over its own `tokens`, which become 0 to n - 1."""
        places = jnp.argmax(tokens[None, :] == self.tokens[:, None], axis=1)
        return self._replace(
            tokens=places.astype(jnp.int32), _vocab_size=tokens.shape[0]
        )
