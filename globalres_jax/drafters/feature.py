"""Drafts from the target's last features: what it made of each token is read beside it.

As EAGLE (arXiv 2401.15077) does: a token goes in together with the feature of the token
before it. In the text that is the target's own; below the root of a drafted tree it is
the draft's. What is accepted is therefore read again, with the target's features.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, DraftPolicy, Emitted, Model, Proposal
from globalres_jax.cache import Chunk, in_chunks, without_padding
from globalres_jax.drafters.growth import Calls, grow_tree
from globalres_jax.drafters.nothing import last_emitted, last_token
from globalres_jax.tree import TokenTree


class FeatureState(NamedTuple):
    """What a draft has read of each row.

    Attributes:
      cache: all of the text, its last token too.
      root: [B] the last token.
      feature: [B, 1, F] what the draft made of it.
    """

    cache: Cache
    root: Array
    feature: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureDrafter:
    """Drafts drawn from a model that reads features beside tokens.

    Attributes:
      model: its function `apply` has `read(params, tokens [B, L], features [B, L, F],
        positions, cache, mask) -> (its own features [B, L, F], cache)`, which appends
        tokens to the cache as a `ModelFn` does, and `logits(params, features [B, L, F])
        -> [B, L, N]`. Its `vocab_size` is the target's.
      ids: [N] the tokens that the logits are of, all different. Other tokens are never
        drafted.
    """

    model: Model
    ids: Array

    #: See `base.Drafter`.
    reads_features: ClassVar[bool] = True

    @property
    def feature_size(self) -> int | None:
        """F, None where the model does not say."""
        return getattr(self.model.apply, "feature_size", None)

    def check(self, tree: TokenTree, vocab_size: int) -> None:
        """ValueError if the vocabularies differ."""
        del tree
        if self.model.vocab_size != vocab_size:
            raise ValueError(
                f"draft: is made for a target of {self.model.vocab_size} tokens, and "
                f"this one has {vocab_size}"
            )

    def start(
        self, prompts: Array, lengths: Array, capacity: int, features: Array
    ) -> FeatureState:
        """Reads the prompts; `features [B, P, F]` are the target's of their tokens."""
        model = self.model
        before = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))

        def read(chunk: Chunk, carry: tuple[Cache, Array]) -> tuple[Cache, Array]:
            cache, last = carry
            size = chunk.tokens.shape[1]
            tokens, *places = chunk.arguments(cache)
            own = jax.lax.dynamic_slice_in_dim(before, chunk.start, size, axis=1)
            x, cache = model.apply.read(model.params, tokens, own, *places)
            place = (lengths - 1 - chunk.start)[:, None, None]
            here = jnp.take_along_axis(x, jnp.clip(place, 0, size - 1), axis=1)
            return cache, jnp.where((place >= 0) & (place < size), here, last)

        cache = model.init_cache(len(prompts), capacity)
        prompts = without_padding(prompts, lengths)
        first = Chunk(prompts[:, :1], lengths, jnp.int32(0))
        tokens, *places = first.arguments(cache)
        x, _ = jax.eval_shape(
            model.apply.read, model.params, tokens, before[:, :1], *places
        )
        carry = cache, jnp.zeros(x.shape, x.dtype)
        cache, last = in_chunks(read, carry, prompts, lengths)
        root = last_token(prompts, lengths)
        return FeatureState(cache.with_length(lengths), root, last)

    def propose(
        self, keys: Array, state: FeatureState, tree: TokenTree, policy: DraftPolicy
    ) -> tuple[Proposal, FeatureState]:
        """Draws a tree below the root, see `grow_tree`; the root has been read."""
        if not tree.depth:
            return Proposal(state.root[:, None], ()), state
        model, length = self.model, state.cache.length

        def first() -> tuple[Array, Array, Cache]:
            logits = model.apply.logits(model.params, state.feature)
            return logits, state.feature, state.cache

        def read(tokens, handed, *places) -> tuple[Array, Array, Cache]:
            x, cache = model.apply.read(model.params, tokens, handed, *places)
            return model.apply.logits(model.params, x), x, cache

        calls = Calls(first, read, self.ids)
        proposal, cache = grow_tree(keys, state.root, length - 1, calls, tree, policy)
        return proposal, state._replace(cache=cache.with_length(length))

    def commit(self, state: FeatureState, emitted: Emitted) -> FeatureState:
        """Reads what became text, over what had been drafted."""
        model, cache = self.model, state.cache
        length = cache.length
        positions = length[:, None] + jnp.arange(emitted.tokens.shape[1])[None, :]
        slots = jnp.arange(cache.capacity)[None, None, :]
        x, cache = model.apply.read(
            model.params,
            emitted.tokens,
            emitted.features,
            positions,
            cache,
            slots <= positions[:, :, None],
        )
        place = jnp.maximum(emitted.count - 1, 0)[:, None, None]
        last = jnp.take_along_axis(x, place, axis=1)
        some = (emitted.count > 0)[:, None, None]
        return FeatureState(
            cache.with_length(length + emitted.count),
            last_emitted(emitted, state.root),
            jnp.where(some, last, state.feature),
        )
