"""What a step adds to the text: up to an end token, or to the cap of the row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Emitted, Walk
from globalres_jax.cache import emitted_slots, write_slots
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.log_probabilities import (
    LogProbabilities,
    empty_log_probabilities,
)


class Ending(NamedTuple):
    """How a step leaves each row.

    Attributes:
      ended: [B] bool, whether it emits nothing more.
      failed: [B] bool, whether that is because the target's logits were broken.
      stopped: [B] bool, whether that is because its last token is an end token.
    """

    ended: Array
    failed: Array
    stopped: Array


def emit(
    walk: Walk, tokens: Array, budget: Array, ends: Array, broken: Array
) -> tuple[Emitted, Ending]:
    """The tokens of a walk that become text, and whether each row ends with them.

    Args:
      walk: of each row, leaves [B, ...].
      tokens: [B, N] token at each node of the tree.
      budget: [B] most tokens that a row may still emit; 0 for one that has ended.
      ends: [B, E] tokens that end a row, -1 for none.
      broken: [B, N] bool, whether the target's logits after each node say nothing:
        no token after such a node becomes text.
    """
    batch, depth = walk.nodes.shape
    index = jnp.arange(depth + 1)[None, :]
    accepted = walk.accept_length[:, None]
    path = jnp.take_along_axis(tokens, walk.nodes, axis=1)
    beyond = walk.next_token[:, None]
    text = jnp.where(index < accepted, jnp.concatenate([path, beyond], 1), beyond)

    is_end = jnp.any(text[:, :, None] == ends[:, None, :], axis=-1)
    is_end = is_end & (index <= accepted)
    met_end = jnp.any(is_end, axis=1)
    length = jnp.where(met_end, jnp.argmax(is_end, axis=1) + 1, accepted[:, 0] + 1)

    root = jnp.zeros((batch, 1), walk.nodes.dtype)
    nodes = jnp.concatenate([root, walk.nodes], axis=1)
    is_broken = jnp.take_along_axis(broken, nodes, axis=1)
    sound = jnp.where(
        jnp.any(is_broken, axis=1), jnp.argmax(is_broken, axis=1), depth + 1
    )
    # What lies beyond the end of a text, or beyond its cap, was not wanted.
    failed = sound < jnp.minimum(length, budget)
    count = jnp.minimum(jnp.minimum(length, sound), budget)
    stopped = met_end & (count == length)
    ended = (count == budget) | stopped | failed
    return (
        Emitted(
            tokens=text,
            count=count,
            node=nodes,
            from_draft=index < accepted,
        ),
        Ending(ended, failed, stopped),
    )


def with_features(emitted: Emitted, features: Array | None) -> Emitted:
    """What was emitted, with the target's features [B, N, F] of the token before each.

    Unchanged where they are None.
    """
    if features is None:
        return emitted
    before = jnp.take_along_axis(features, emitted.node[:, :, None], axis=1)
    index = jnp.arange(before.shape[1])[None, :]
    held = (index < emitted.count[:, None])[:, :, None]
    return emitted._replace(features=jnp.where(held, before, 0))


class TextBuffer(NamedTuple):
    """The text that a batch has written.

    Attributes:
      tokens: [B, T] filler beyond `lengths`.
      from_draft: [B, T] whether each had been drafted.
      lengths: [B].
      scores: log-probabilities of the tokens, None where nobody asked.
    """

    tokens: Array
    from_draft: Array
    lengths: Array
    scores: LogProbabilities | None

    def extend(self, emitted: Emitted, scores: LogProbabilities | None) -> TextBuffer:
        """The text with what a step emitted, and its `scores [B, D + 1]`, behind it."""

        def put(rows: Array, new: Array) -> Array:
            return write_slots(rows, slots, new)

        slots = emitted_slots(emitted, self.lengths, self.tokens.shape[1])
        return TextBuffer(
            put(self.tokens, emitted.tokens),
            put(self.from_draft, emitted.from_draft),
            self.lengths + emitted.count,
            jax.tree.map(put, self.scores, scores),
        )


def empty_text(batch: int, size: int, config: SpeculativeConfig) -> TextBuffer:
    """Room for `size` tokens a row, and what else the config asks for of each."""
    filler, scores = config.pad_id, None
    if config.log_probabilities:
        top = config.top_log_probabilities
        scores = empty_log_probabilities(batch, size, top, filler)
    return TextBuffer(
        jnp.full((batch, size), filler, jnp.int32),
        jnp.zeros((batch, size), bool),
        jnp.zeros(batch, jnp.int32),
        scores,
    )
