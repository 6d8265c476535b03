"""Drafts without a model: the text's own past (prompt lookup, n-gram continuation)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, DraftPolicy, Emitted, Proposal
from globalres_jax.cache import emitted_slots, write_slots
from globalres_jax.draft_laws import Deterministic
from globalres_jax.tree import TokenTree


class History(NamedTuple):
    """The text of each row.

    Attributes:
      text: [B, S] tokens, anything beyond `length`.
      length: [B] tokens of each row, the last one included.
    """

    text: Array
    length: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Proposes what followed the latest earlier occurrence of the last few tokens.

    The longest of the last `max_ngram`, ..., 1 tokens that occurred before counts.
    Given the text the draft is certain, so its law is `Deterministic`, and verification
    is as lossless as with any other. Where fewer than `min_ngram` tokens had occurred
    before nothing is drafted, and a step costs what it does in plain decoding. Takes
    the place of a draft model in `generate`; it drafts a single path.

    Attributes:
      max_ngram: most tokens that are looked up.
      min_ngram: fewest tokens that must have occurred before; 2 if None (1 where only
        one is looked up).
    """

    max_ngram: int = 3
    min_ngram: int | None = None

    def __post_init__(self):
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram: must be at least 1, got {self.max_ngram}")
        if self.min_ngram is None:
            object.__setattr__(self, "min_ngram", min(2, self.max_ngram))
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ValueError(
                f"min_ngram: must be from 1 to max_ngram, {self.max_ngram}, got "
                f"{self.min_ngram}"
            )

    def check(self, tree: TokenTree, vocab_size: int) -> None:
        """ValueError if the tree is not a single path."""
        del vocab_size
        if max(map(len, tree.levels)) > 1:
            raise ValueError(
                "num_drafts: prompt lookup drafts one path, so 1 is allowed, got a "
                f"tree with levels of {[len(level) for level in tree.levels]} nodes"
            )

    def start(self, prompts: Array, lengths: Array, capacity: int) -> History:
        """The prompts [B, P], with room for `capacity` tokens."""
        width = prompts.shape[1]
        return History(jnp.pad(prompts, ((0, 0), (0, capacity - width))), lengths)

    def propose(
        self, keys: Array, state: History, tree: TokenTree, policy: DraftPolicy
    ) -> tuple[Proposal, History]:
        """A path that the text makes certain; the keys are not used."""
        del keys
        found = jax.vmap(lambda *row: self.continuation(*row, tree.depth))
        guess, matched = found(*state)
        root = jnp.take_along_axis(state.text, state.length[:, None] - 1, axis=1)
        tokens = jnp.concatenate([root, guess], axis=1)

        def certain(token: Array) -> Deterministic:
            return Deterministic(token[None], policy.vocab_size)

        laws = [
            jax.vmap(jax.vmap(certain))(guess[:, level : level + 1])
            for level in range(tree.depth)
        ]
        return Proposal(tokens, tuple(laws), matched >= self.min_ngram), state

    def commit(self, state: History, emitted: Emitted) -> History:
        """The text with what was emitted behind it."""
        slots = emitted_slots(emitted, state.length, state.text.shape[1])
        text = write_slots(state.text, slots, emitted.tokens)
        return History(text, state.length + emitted.count)

    def continuation(
        self, text: Array, length: Array, num_tokens: int
    ) -> tuple[Array, Array]:
        """What the first `length []` tokens of `text [S]` foretell.

        Returns:
          [num_tokens] tokens, the last one repeated where nothing occurred before; and
          how many of the last tokens did, [] from 0 to `max_ngram`.
        """
        place = jnp.arange(text.shape[0])
        last = length - 1
        # matched[i]: how many tokens up to i equal those up to the last one.
        matched, running = jnp.zeros_like(place), place < last
        for back in range(self.max_ngram):
            same = jnp.roll(text, back) == text[jnp.maximum(last - back, 0)]
            running = running & same & (place >= back)
            matched = matched + running
        best = jnp.argmax(jnp.where(place < last, matched * len(place) + place, -1))
        # Of a text of one token nothing was matched, and `place < last` is nowhere.
        count = matched[best]
        period = jnp.maximum(last - best, 1)
        found = best + 1 + jnp.arange(num_tokens) % period
        repeat = jnp.broadcast_to(text[last], (num_tokens,))
        return jnp.where(count > 0, text[jnp.minimum(found, last)], repeat), count
