"""Drafts from a model: grow a token tree, one call a level."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import (
    Array,
    Cache,
    DraftPolicy,
    Emitted,
    Model,
    Proposal,
)
from globalres_jax.cache import prefill
from globalres_jax.drafters.growth import Calls, grow_tree
from globalres_jax.drafters.nothing import last_emitted, last_token
from globalres_jax.tree import TokenTree


class ModelState(NamedTuple):
    """What a model has read of each row.

    Attributes:
      cache: all of the text but its last token, except perhaps `previous`.
      previous: [B] the last token but one. It is fed again: where a whole path was
        accepted, its last token was drafted but never read.
      root: [B] the last token.
    """

    cache: Cache
    previous: Array
    root: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelDrafter:
    """Drafts drawn from a model's own next-token distributions.

    Attributes:
      model: cheaper than the target, over the same vocabulary.
      ids: [N] the tokens that its logits [B, L, N] are of, all different; None where
        they are of the whole vocabulary. Other tokens are never drafted.
    """

    model: Model
    ids: Array | None = None

    def check(self, tree: TokenTree, vocab_size: int) -> None:
        """ValueError if the vocabularies differ."""
        del tree
        if self.model.vocab_size != vocab_size:
            raise ValueError(
                f"draft: has {self.model.vocab_size} tokens, the target {vocab_size}; "
                "they must share one vocabulary"
            )

    def start(self, prompts: Array, lengths: Array, capacity: int) -> ModelState:
        """Reads all but the last token of each prompt."""
        return ModelState(
            prefill(self.model, prompts, lengths, capacity),
            last_token(prompts, lengths, back=2),
            last_token(prompts, lengths),
        )

    def propose(
        self, keys: Array, state: ModelState, tree: TokenTree, policy: DraftPolicy
    ) -> tuple[Proposal, ModelState]:
        """Draws a tree below the root, see `grow_tree`."""
        if not tree.depth:
            return Proposal(state.root[:, None], ()), state
        base, model = state.cache.length, self.model

        def first() -> tuple[Array, tuple, Cache]:
            logits, cache = self._read_root(state)
            return logits, (), cache

        def read(tokens, handed, positions, cache, mask) -> tuple[Array, tuple, Cache]:
            logits, cache = model.apply(model.params, tokens, positions, cache, mask)
            return logits, handed, cache

        calls = Calls(first, read, self.ids)
        proposal, cache = grow_tree(keys, state.root, base, calls, tree, policy)
        return proposal, state._replace(cache=cache.with_length(base))

    def commit(self, state: ModelState, emitted: Emitted) -> ModelState:
        """Keeps the path that became text."""
        base = state.cache.length
        previous = jnp.where(emitted.count > 0, state.root, state.previous)
        return ModelState(
            state.cache.keep_path(base, emitted.node[:, 1:], emitted.count),
            last_emitted(emitted, previous, back=2),
            last_emitted(emitted, state.root),
        )

    def _read_root(self, state: ModelState) -> tuple[Array, Cache]:
        """Logits [B, 1, V] after the root.

        The root lies in slot `base`, behind `previous`. A text of one token has no
        `previous`: there the root lies in slots 0 and 1, and its copy sees itself.
        """
        base, slots = state.cache.length[:, None], jnp.arange(state.cache.capacity)
        first = base == 0
        start, both = jnp.maximum(base - 1, 0), jnp.arange(2)[None, :]
        mask = slots[None, None, :] <= (start + both)[:, :, None]
        alone = jnp.broadcast_to(slots[None, :] == both.T, mask.shape[1:])[None]
        apply = getattr(self.model.apply, "of_last", self.model.apply)
        logits, cache = apply(
            self.model.params,
            jnp.stack([state.previous, state.root], axis=1),
            jnp.where(first, 0, start + both),
            state.cache.with_length(start[:, 0]),
            jnp.where(first[:, :, None], alone, mask),
        )
        return logits[:, -1:], cache.with_length(base[:, 0] + 1)
