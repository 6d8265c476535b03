"""Key/value cache: a plain pytree with one length per row, as `base.Cache` wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, Emitted, Model, State
from globalres_jax.numerics.rows import with_types_of

#: Tokens of each prompt that `prefill` reads at once.
CHUNK = 256


class KVCache(NamedTuple):
    """Keys and values of all layers.

    Attributes:
      keys: for each layer [B, S, kv_heads, head_dim]. Layers stay apart, so that
        writing to one moves no other.
      values: same shapes as `keys`.
      positions: [B, S] int32, place in the text of the token in each slot. In a
        committed row it is the slot itself, in a token tree it is not.
      length: [B] int32, tokens held by each row.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    positions: Array
    length: Array

    @property
    def capacity(self) -> int:
        """Number of slots S in each row."""
        return self.positions.shape[1]

    def with_length(self, length: Array) -> KVCache:
        """The same slots, of which the first `length [B]` hold text."""
        return self._replace(length=length)

    def keep_path(self, base: Array, nodes: Array, count: Array) -> KVCache:
        """Moves a path of a token tree behind its root, see `base.Cache`."""
        source = base[:, None] + nodes

        def move(slots: Array) -> Array:
            path = jax.vmap(lambda row, places: row[places])(slots, source)
            return append(slots, base + 1, path)

        keys, values, positions = jax.tree.map(
            move, (self.keys, self.values, self.positions)
        )
        return KVCache(keys, values, positions, base + count)


@dataclasses.dataclass(frozen=True)
class NewCache:
    """`function.init_cache`, equal for equal functions.

    A bound method equals only that of the same object, and a model loaded twice would
    be compiled twice.
    """

    function: Any

    def __call__(self, batch: int, length: int) -> Cache:
        return self.function.init_cache(batch, length)


def init_cache(
    num_layers: int,
    batch: int,
    capacity: int,
    num_kv_heads: int,
    head_dim: int,
    dtype=jnp.float32,
) -> KVCache:
    """An empty cache with `capacity` slots a row. `num_layers` may be 0."""
    shape = (batch, capacity, num_kv_heads, head_dim)

    def layers() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in range(num_layers))

    positions = jnp.zeros((batch, capacity), jnp.int32)
    return KVCache(layers(), layers(), positions, jnp.zeros(batch, jnp.int32))


def append(rows: Array, start: Array, new: Array) -> Array:
    """Writes `new [B, L, ...]` into `rows [B, S, ...]` from slots `start [B]` on.

    `start` is in 0..S - L.
    """
    if len(rows) == 1:
        # One piece of memory, where many rows are a scatter, which XLA compiles anew
        # for every layer of a model.
        return jax.lax.dynamic_update_slice_in_dim(
            rows, new.astype(rows.dtype), start[0], axis=1
        )
    return write_slots(rows, start[:, None] + jnp.arange(new.shape[1])[None, :], new)


def emitted_slots(emitted: Emitted, length: Array, capacity: int) -> Array:
    """Slots [B, D + 1] of emitted tokens behind the first `length [B]` of each row.

    What was not emitted gets `capacity`, which scatters drop.
    """
    index = jnp.arange(emitted.tokens.shape[1])[None, :]
    kept = index < emitted.count[:, None]
    return jnp.where(kept, length[:, None] + index, capacity)


def write_slots(rows: Array, slots: Array, new: Array) -> Array:
    """Scatters `new [B, L, ...]` into `rows [B, S, ...]` at `slots [B, L]`."""
    return jax.vmap(lambda row, slot, value: row.at[slot].set(value, mode="drop"))(
        rows, slots, new.astype(rows.dtype)
    )


def prefill(model: Model, prompts: Array, lengths: Array, capacity: int) -> Cache:
    """A cache that holds all but the last token of each prompt.

    The prompts are read in chunks, see `in_chunks`: logits and scores of no more than a
    chunk are ever held, and padding to any width costs no chunk.

    Args:
      model: target or draft.
      prompts: [B, P] tokens, padded on the right with anything, P up to `capacity`.
      lengths: [B] tokens of each prompt, at least 1.
      capacity: slots of the cache.
    """

    def read(chunk: Chunk, cache: Cache) -> Cache:
        # The logits leave the loop's body nowhere, so that no output head is computed.
        return model.apply(model.params, *chunk.arguments(cache))[-1]

    prompts, last = without_padding(prompts, lengths), jnp.maximum(lengths - 1, 0)
    cache = in_chunks(read, model.init_cache(len(prompts), capacity), prompts, last)
    return cache.with_length(lengths - 1)


def prefill_with_features(
    model: Model, prompts: Array, lengths: Array, capacity: int
) -> tuple[Cache, Array]:
    """`prefill`, and what the model made of these tokens: features [B, P, F].

    The model has `with_features`, see `base.ModelFn`. Beyond the tokens that are read
    features hold anything finite that the model gives.
    """
    apply = model.apply.with_features
    prompts, last = without_padding(prompts, lengths), jnp.maximum(lengths - 1, 0)

    def read(chunk: Chunk, carry: tuple[Cache, Array]) -> tuple[Cache, Array]:
        cache, features = carry
        _, new, cache = apply(model.params, *chunk.arguments(cache))
        place = (0, chunk.start, 0)
        return cache, jax.lax.dynamic_update_slice(features, new, place)

    cache = model.init_cache(len(prompts), capacity)
    first = Chunk(prompts[:, :1], last, jnp.int32(0))
    shape = jax.eval_shape(lambda: apply(model.params, *first.arguments(cache))[1])
    empty = jnp.zeros((*prompts.shape, shape.shape[-1]), shape.dtype)
    cache, features = in_chunks(read, (cache, empty), prompts, last)
    return cache.with_length(lengths - 1), features


class Chunk(NamedTuple):
    """A part of each prompt.

    Attributes:
      tokens: [B, L].
      last: [B] the largest position that a row has; what lies beyond stands there.
      start: [] place of the first of these tokens.
    """

    tokens: Array
    last: Array
    start: Array

    @property
    def places(self) -> Array:
        """[L] where these tokens stand."""
        return self.start + jnp.arange(self.tokens.shape[1])

    def arguments(self, cache: Cache) -> tuple[Array, Array, Cache, Array]:
        """What a `ModelFn` takes besides its parameters, to append them in order."""
        batch, size = self.tokens.shape
        mask = jnp.arange(cache.capacity)[None, :] <= self.places[:, None]
        return (
            self.tokens,
            jnp.minimum(self.places[None, :], self.last[:, None]),
            cache.with_length(jnp.full_like(cache.length, self.start)),
            jnp.broadcast_to(mask[None], (batch, size, cache.capacity)),
        )


def without_padding(prompts: Array, lengths: Array) -> Array:
    """`prompts [B, P]` with token 0 for what is none."""
    held = jnp.arange(prompts.shape[1])[None, :] < lengths[:, None]
    return jnp.where(held, prompts, 0)


def in_chunks(
    read: Callable[[Chunk, State], State], carry: State, prompts: Array, count: Array
) -> State:
    """Carries through `read` the first `count [B]` tokens of each prompt.

    In chunks of `CHUNK` tokens, as many as the longest one needs. The last chunk of an
    odd width begins earlier, and reads some tokens again.

    Args:
      read: `read(chunk, carry) -> carry`.
      carry: a pytree of arrays.
      prompts: [B, P] tokens, in all places.
      count: [B].
    """
    width = prompts.shape[1]
    size, longest = min(CHUNK, width), jnp.max(count, initial=0)

    def unread(progress: tuple[Array, State]) -> Array:
        return progress[0] < longest

    def advance(progress: tuple[Array, State]) -> tuple[Array, State]:
        done, carry = progress
        start = jnp.minimum(done, width - size)
        tokens = jax.lax.dynamic_slice_in_dim(prompts, start, size, axis=1)
        carry = read(Chunk(tokens, count, start), carry)
        return with_types_of(progress, (done + size, carry))

    return jax.lax.while_loop(unread, advance, (jnp.zeros_like(longest), carry))[1]
