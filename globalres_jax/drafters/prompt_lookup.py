"""Drafts without a model: the text's own past (prompt lookup, n-gram continuation)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.cache import write_slots
from globalres_jax.tree import TokenTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Proposes what followed the latest earlier occurrence of the last few tokens.

    The longest of the last `max_ngram`, ..., 1 tokens that occurred before counts;
    where none did, the last token is repeated. Given the text the draft is certain,
    so its law is a point mass, and verification is as lossless as with any other.
    Takes the place of a draft model in `generate`; it drafts a single path.

    Attributes:
      max_ngram: most tokens that are looked up.
    """

    max_ngram: int = 3

    def __post_init__(self):
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram: must be at least 1, got {self.max_ngram}")

    def check(self, tree: TokenTree) -> None:
        """ValueError if the tree is not a single path."""
        if any(width > 1 for width in tree.branching):
            raise ValueError(
                "num_drafts: prompt lookup drafts one path, so 1 is allowed, got a "
                f"tree with branching {tree.branching}"
            )

    def history(self, prompts: Array, capacity: int) -> Array:
        """[B, capacity] the text so far, from `prompts [B, P]`."""
        width = prompts.shape[1]
        return jnp.pad(prompts, ((0, 0), (0, capacity - width)))

    def draft(self, history: Array, length: Array, num_tokens: int) -> Array:
        """[B, num_tokens] proposals after the first `length [B]` tokens of each row."""
        return jax.vmap(lambda text, size: self._draft_row(text, size, num_tokens))(
            history, length
        )

    def _draft_row(self, text: Array, length: Array, num_tokens: int) -> Array:
        place = jnp.arange(text.shape[0])
        last = length - 1
        # matched[i]: how many tokens up to i equal those up to the last one.
        matched, running = jnp.zeros_like(place), place < last
        for back in range(self.max_ngram):
            same = jnp.roll(text, back) == text[jnp.maximum(last - back, 0)]
            running = running & same & (place >= back)
            matched = matched + running
        best = jnp.argmax(jnp.where(place < last, matched * len(place) + place, -1))
        best = jnp.where(matched[best] > 0, best, last - 1)
        period = jnp.maximum(last - best, 1)
        found = best + 1 + jnp.arange(num_tokens) % period
        repeat = jnp.broadcast_to(text[last], (num_tokens,))
        return jnp.where(matched[best] > 0, text[jnp.minimum(found, last)], repeat)

    def extend(self, history: Array, base: Array, tokens: Array) -> Array:
        """The text with `tokens [B, T]` after the one at `base [B]`."""
        slots = base[:, None] + 1 + jnp.arange(tokens.shape[1])[None]
        return write_slots(history, slots, tokens)
