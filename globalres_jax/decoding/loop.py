"""Text: prefill, then one `lax.while_loop` whose body is the decoding step.

Rows of a batch have their own lengths, keys, options and stops, and nothing leaves the
device inside the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.emission import TextBuffer, empty_text
from globalres_jax.decoding.generation import Generation, as_generation
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import as_program
from globalres_jax.decoding.step import (
    Request,
    StepState,
    decode_step,
    first_state,
)
from globalres_jax.numerics.rows import on_platform, with_types_of
from globalres_jax.sharding import gather


def generate(
    key: Array,
    target: Model,
    draft: Model | Drafter | None,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    eos_id: int | Sequence[int] | Array | None = None,
    options: SamplingOptions | None = None,
) -> Generation:
    """Samples continuations from the target, exactly, with the draft's help.

    Args:
      key: one random key, of which row i uses `fold_in(key, i)`, or [B] keys, one a
        row; of either kind that JAX has. A row's tokens depend on its own key, prompt
        and options alone.
      target: the model whose distribution the text has.
      draft: a cheaper model over the same vocabulary, or another `Drafter`, such as
        `PromptLookup`; None for plain decoding.
      prompts: [B, P] integer tokens, padded on the right with anything.
      prompt_lengths: [B] number of tokens in each prompt, 1..P.
      config: how to speculate; `SpeculativeConfig()` if None.
      max_new_tokens: length cap of every row, or a list with one for each.
      eos_id: token that ends a row, or several; an array [B, E] for each row, filled
        up with -1; `()` for none. The target's own `eos_id` if None.
      options: sampling options for each row, in place of the config's.

    Returns:
      A `Generation`.

    Raises:
      TypeError: an argument of another kind; it is named.
      ValueError: an empty or over-long prompt, vocabularies that differ, a draft that
        cannot have the tree's shape, a cache too short for prompt, text and tree, a
        prompt and its new tokens beyond the target's `context_length`, or
        `tree="auto"` under `jit`.
    """
    program = as_program(
        key,
        target,
        draft,
        prompts,
        prompt_lengths,
        config,
        max_new_tokens,
        eos_id,
        options,
    )
    return program.finish(_generate(*program.arrays, **program.static))


def compile_generate(*args, **kwargs) -> Callable[[], Generation]:
    """Compiles what `generate` with these arguments runs, and returns it as a call.

    So that time to compile and time to run can be told apart.
    """
    program = as_program(*args, **kwargs)
    compiled = _generate.lower(*program.arrays, **program.static).compile()
    return lambda: program.finish(compiled(*program.arrays))


#: What goes from step to step: the state, and the text so far.
Progress = tuple[StepState, TextBuffer]

STATIC = ("config", "room", "capacity", "mesh", "platform")


@functools.partial(jax.jit, static_argnames=STATIC)
def _generate(*arrays, platform: str | None = None, **static) -> Generation:
    with on_platform(platform):
        return _decode(*arrays, **static)


def _decode(
    target,
    drafter,
    keys,
    prompts,
    lengths,
    budget,
    ends,
    options,
    *,
    config: SpeculativeConfig,
    room: int,
    capacity: int,
    mesh=None,
) -> Generation:
    request = Request(target, drafter, options, ends, config)
    state, text = begin(request, keys, prompts, lengths, budget, room, capacity)
    return gather(mesh, as_generation(*advance(state, text, request)))


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
    state: StepState, text: TextBuffer, request: Request, most: Array | None = None
) -> Progress:
    """As many steps as it takes for every row to end, or at most `most []`."""

    def is_running(carry: tuple[Array, Progress]) -> Array:
        taken, (state, _) = carry
        running = jnp.any(state.budget > 0)
        return running if most is None else running & (taken < most)

    def step(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        taken, (state, text) = carry
        state, emitted, scores = decode_step(state, request)
        following = with_types_of(carry[1], (state, text.extend(emitted, scores)))
        return taken + 1, following

    carry = jnp.int32(0), (state, text)
    return jax.lax.while_loop(is_running, step, carry)[1]
