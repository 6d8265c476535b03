"""State and text before the first step, and after some more of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.decoding.emission import TextBuffer, empty_text
from globalres_jax.decoding.state import Request, StepState, first_state
from globalres_jax.decoding.step import decode_step
from globalres_jax.numerics.rows import with_types_of

#: What goes from step to step: the state, and the text so far.
Progress = tuple[StepState, TextBuffer]

#: What fixes the compiled programs.
STATIC = ("config", "room", "capacity", "mesh", "platform")


def begin(
    request: Request,
    keys: Array,
    prompts: Array,
    lengths: Array,
    budget: Array,
    room: int,
    capacity: int,
) -> Progress:
    """State and text before the first step; for the arguments see `first_state`.

    `room` is how many tokens a row may become.
    """
    state = first_state(request, keys, prompts, lengths, budget, capacity)
    return state, empty_text(len(prompts), room, request.config)


def advance(
    state: StepState,
    text: TextBuffer,
    request: Request,
    most: Array | None = None,
    until_one_ends: bool = False,
) -> Progress:
    """As many steps as it takes for every row to end, or at most `most []`.

    With `until_one_ends` no more than until one of those that are running has ended.
    """
    number = jnp.sum(state.budget > 0)

    def is_running(carry: tuple[Array, Progress]) -> Array:
        taken, (state, _) = carry
        running = jnp.any(state.budget > 0)
        if until_one_ends:
            running &= jnp.sum(state.budget > 0) == number
        return running if most is None else running & (taken < most)

    def step(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        taken, (state, text) = carry
        state, emitted, scores = decode_step(state, request)
        following = with_types_of(carry[1], (state, text.extend(emitted, scores)))
        return taken + 1, following

    carry = jnp.int32(0), (state, text)
    return jax.lax.while_loop(is_running, step, carry)[1]
