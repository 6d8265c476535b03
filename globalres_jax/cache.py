"""Key/value cache: a plain pytree with one length per row, as `base.Cache` wants it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, Emitted, Model

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

    The prompts are read in chunks of `CHUNK` tokens, as many as the longest one needs:
    logits and scores of no more than a chunk are ever held, and padding to any width
    costs no chunk.

    Args:
      model: target or draft.
      prompts: [B, P] tokens, padded on the right with anything, P up to `capacity`.
      lengths: [B] tokens of each prompt, at least 1.
      capacity: slots of the cache.
    """
    batch, width = prompts.shape
    size = min(CHUNK, width)
    last = jnp.maximum(lengths - 1, 0)
    longest = jnp.max(last, initial=0)
    # What is no token of a prompt becomes one, at a place that the prompt has.
    prompts = jnp.where(jnp.arange(width)[None, :] < lengths[:, None], prompts, 0)

    def unread(carry: tuple[Array, Cache]) -> Array:
        return carry[0] < longest

    def read(carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        done, cache = carry
        # The last chunk of an odd width begins earlier, and reads some tokens again.
        start = jnp.minimum(done, width - size)
        places = start + jnp.arange(size)
        mask = jnp.arange(capacity)[None, :] <= places[:, None]
        _, cache = model.apply(
            model.params,
            jax.lax.dynamic_slice_in_dim(prompts, start, size, axis=1),
            jnp.minimum(places[None, :], last[:, None]),
            cache.with_length(jnp.full_like(cache.length, start)),
            jnp.broadcast_to(mask[None], (batch, size, capacity)),
        )
        return done + size, cache

    # The logits leave the loop's body nowhere, so that no output head is computed.
    cache = model.init_cache(batch, capacity)
    _, cache = jax.lax.while_loop(unread, read, (jnp.zeros_like(longest), cache))
    return cache.with_length(lengths - 1)
