"""Rounds of speculative rejection, in one compiled program.

Every round decodes its rows up to a length, asks for their rewards and keeps the best;
rows that are kept take their caches with them. The rounds are unrolled, so that each
has its own batch size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.cache import write_slots
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.emission import TextBuffer, empty_text
from globalres_jax.decoding.metrics import empty_metrics
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.state import (
    Request,
    StepState,
    first_state,
    read_prompts,
    reads_features,
)
from globalres_jax.decoding.step import decode_step
from globalres_jax.drafters import NoDrafts
from globalres_jax.numerics.rows import on_platform, with_types_of
from globalres_jax.sharding import gather


class Round(NamedTuple):
    """One round.

    Attributes:
      rows: how many take part.
      length: tokens at which a row waits for the others; the last one is the cap.
      speculates: whether they are decoded with drafts.
    """

    rows: int
    length: int
    speculates: bool


class Standing(NamedTuple):
    """What is known of all N rows, those that have left included.

    Attributes:
      tokens: [N, T] filler beyond `lengths`.
      lengths: [N].
      rewards: [N, R] after each round; of a row that has left, its last.
      rounds: [N] in how many it took part.
      complete: [N] bool, whether the text had ended when the row was last looked at.
      failed: [N] bool, it ended since the target's logits were broken.
      steps: [N] target calls.
    """

    tokens: Array
    lengths: Array
    rewards: Array
    rounds: Array
    complete: Array
    failed: Array
    steps: Array


class _Rows(NamedTuple):
    """Everything that belongs to the rows of a round; all leaves [B, ...]."""

    number: Array
    state: StepState
    text: TextBuffer
    options: SamplingOptions
    ends: Array


@dataclasses.dataclass(frozen=True)
class _Match:
    """What is the same for all rows.

    Attributes:
      target, drafter, config: as `generate` has them.
      prompt: [1, P].
      length: [1].
      room: tokens that a row may become.
      capacity: slots of the caches.
    """

    target: Model
    drafter: Drafter
    config: SpeculativeConfig
    prompt: Array
    length: Array
    room: int
    capacity: int

    def request(
        self, speculates: bool, options: SamplingOptions, ends: Array
    ) -> Request:
        """What a round asks for, of rows with these options and ends."""
        drafter, config = self.drafter, self.config
        if not speculates:
            drafter, config = NoDrafts(), config.plain()
        return Request(self.target, drafter, options, ends, config)

    def begin(
        self, keys: Array, budget: Array, ends: Array, options, speculates: bool
    ) -> _Rows:
        """All rows before the first token; the prompt is read once."""
        number = jnp.arange(len(keys), dtype=jnp.int32)
        first = _take((keys, budget, ends, options), jnp.zeros(1, jnp.int32))
        request = self.request(speculates, first[3], first[2])
        state = first_state(
            request, first[0], self.prompt, self.length, first[1], self.capacity
        )
        state = _take(state, jnp.zeros_like(number))
        state = state._replace(keys=keys, budget=budget)
        text = empty_text(len(keys), self.room, request.config)
        return _Rows(number, state, text, options, ends)

    def switched(self, rows: _Rows) -> _Rows:
        """Rows that were decoded without drafts, and now go on with them.

        The drafter reads what they have written.
        """
        batch, size = rows.text.tokens.shape
        texts = jnp.pad(self.prompt, ((0, 0), (0, size)))
        texts = jnp.broadcast_to(texts, (batch, texts.shape[1]))
        slots = self.length[:, None] + jnp.arange(size)[None, :]
        slots = jnp.broadcast_to(slots, (batch, size))
        texts = write_slots(texts, slots, rows.text.tokens)
        lengths = self.length + rows.text.lengths
        cache, read = rows.state.cache, (texts, lengths, self.capacity)
        if reads_features(self.drafter):
            # Only reading the text again tells the target's features of it.
            cache, draft = read_prompts(self.target, self.drafter, *read)
        else:
            draft = self.drafter.start(*read)
        metrics = empty_metrics(batch, self.config.token_tree.depth)
        state = rows.state._replace(cache=cache, draft=draft, metrics=metrics)
        return rows._replace(state=state)


@functools.partial(
    jax.jit,
    static_argnames=("schedule", "config", "room", "capacity", "mesh", "platform"),
)
def run_rounds(
    target,
    drafter,
    keys,
    prompts,
    lengths,
    budget,
    ends,
    options,
    reward,
    *,
    schedule: tuple[Round, ...],
    config: SpeculativeConfig,
    room: int,
    capacity: int,
    mesh,
    platform,
) -> Standing:
    """Decodes all rounds of a schedule; arguments as `as_program` makes them."""
    with on_platform(platform):
        one = prompts[:1], lengths[:1]
        match = _Match(target, drafter, config, *one, room, capacity)
        rows = match.begin(keys, budget, ends, options, schedule[0].speculates)
        standing = _no_standing(len(keys), room, len(schedule), config.pad_id)
        previous = schedule[0]
        for index, this in enumerate(schedule):
            if index:
                best_first = ranking(standing.rewards[:, index - 1], standing.failed)
                # In the order of their numbers, so that nothing moves if all stay.
                place = jnp.argsort(best_first)[rows.number]
                kept = jnp.sort(jnp.argsort(place)[: this.rows])
                rows = _take(rows, kept)
            if this.speculates and not previous.speculates:
                rows = match.switched(rows)
            request = match.request(this.speculates, rows.options, rows.ends)
            state, text = _until(rows.state, rows.text, request, this.length)
            rows = rows._replace(state=state, text=text)
            standing = _looked_at(standing, rows, reward, index)
            previous = this
        return gather(mesh, standing)


def ranking(rewards: Array, broken: Array) -> Array:
    """[N] rows, best first: by reward; a NaN, or a `broken` row, is behind the others.

    Of equal rewards the first row is the better one.
    """
    behind = broken | jnp.isnan(rewards)
    return jnp.lexsort((-jnp.where(behind, 0, rewards), behind))


def _until(
    state: StepState, text: TextBuffer, request: Request, length: int
) -> tuple[StepState, TextBuffer]:
    """Steps until every row has `length` tokens or has ended.

    A step may bring a row beyond it: cut off there, it would not be the text that the
    row writes alone. Rows that wait are as rows that have ended, until the next round.
    """

    def is_going(state: StepState, text: TextBuffer) -> Array:
        return (state.budget > 0) & (text.lengths < length)

    def step(carry: tuple[StepState, TextBuffer]) -> tuple[StepState, TextBuffer]:
        state, text = carry
        going = is_going(state, text)
        awake = state._replace(budget=jnp.where(going, state.budget, 0))
        following, emitted, scores = decode_step(awake, request)
        budget = jnp.where(going, following.budget, state.budget)
        following = following._replace(budget=budget)
        return with_types_of(carry, (following, text.extend(emitted, scores)))

    return jax.lax.while_loop(
        lambda carry: jnp.any(is_going(*carry)), step, (state, text)
    )


def _looked_at(
    standing: Standing, rows: _Rows, reward: Callable, index: int
) -> Standing:
    """The standing after a round: what its rows have written, and their rewards."""
    state, text = rows.state, rows.text
    found = jnp.asarray(reward(text.tokens, text.lengths), jnp.float32)

    def put(all_rows: Array, new: Array) -> Array:
        return all_rows.at[rows.number].set(new.astype(all_rows.dtype))

    # Those who have left keep what they had.
    last = standing.rewards[:, max(index - 1, 0)]
    return Standing(
        tokens=put(standing.tokens, text.tokens),
        lengths=put(standing.lengths, text.lengths),
        rewards=standing.rewards.at[:, index].set(put(last, found)),
        rounds=put(standing.rounds, jnp.full_like(rows.number, index + 1)),
        complete=put(standing.complete, state.budget == 0),
        failed=put(standing.failed, state.failed),
        steps=put(standing.steps, state.steps),
    )


def _no_standing(count: int, room: int, rounds: int, filler: int) -> Standing:
    numbers, flags = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    return Standing(
        tokens=jnp.full((count, room), filler, jnp.int32),
        lengths=numbers,
        rewards=jnp.zeros((count, rounds), jnp.float32),
        rounds=numbers,
        complete=flags,
        failed=flags,
        steps=numbers,
    )


def _take(tree, rows: Array):
    return jax.tree.map(lambda x: x[rows], tree)
