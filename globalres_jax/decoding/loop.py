"""Text: prefill, then one `lax.while_loop` whose body is the decoding step.

Rows of a batch have their own lengths, keys, options and stops, and nothing leaves the
device inside the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Drafter, Model, Params
from globalres_jax.decoding.buckets import (
    Sizes,
    bucket_sizes,
    first_columns,
    pad_prompts,
)
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.emission import TextBuffer, empty_text
from globalres_jax.decoding.metrics import Metrics
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.request import (
    check_context,
    check_prompts,
    check_room,
    end_tokens,
)
from globalres_jax.decoding.step import (
    Request,
    StepState,
    decode_step,
    first_state,
)
from globalres_jax.drafters import NoDrafts, as_drafter
from globalres_jax.numerics.rows import on_platform
from globalres_jax.sharding import gather, mesh_of, place_rows
from globalres_jax.validation import as_array, is_concrete


class Generation(NamedTuple):
    """Result of `generate`.

    Attributes:
      tokens: [B, T] int32, the config's `pad_id` beyond `lengths`; an end token that
        ended a row is its last token.
      lengths: [B] number of tokens emitted.
      from_draft: [B, T] bool, the token had been drafted.
      metrics: counts and rates, see `Metrics`.
    """

    tokens: Array
    lengths: Array
    from_draft: Array
    metrics: Metrics


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
        row. A row's tokens depend on its own key, prompt and options alone.
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
      ValueError: an empty or over-long prompt, vocabularies that differ, a draft that
        cannot have the tree's shape, a cache too short for prompt, text and tree, or
        a prompt and its new tokens beyond the target's `context_length`.
    """
    program = _as_program(
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
    return program.cut(_generate(*program.arrays, **program.static))


def compile_generate(*args, **kwargs) -> Callable[[], Generation]:
    """Compiles what `generate` with these arguments runs, and returns it as a call.

    So that time to compile and time to run can be told apart.
    """
    program = _as_program(*args, **kwargs)
    compiled = _generate.lower(*program.arrays, **program.static).compile()
    return lambda: program.cut(compiled(*program.arrays))


class Program(NamedTuple):
    """A request as `_generate` takes it.

    Attributes:
      arrays: its arguments.
      static: what fixes the program.
      room: most new tokens of a row; the program's texts may be wider.
    """

    arrays: tuple
    static: dict
    room: int

    def cut(self, result: Generation) -> Generation:
        """What was asked for of a result."""
        return result._replace(
            tokens=first_columns(result.tokens, self.room),
            from_draft=first_columns(result.from_draft, self.room),
        )


def _as_program(
    key,
    target,
    draft,
    prompts,
    prompt_lengths,
    config=None,
    max_new_tokens=64,
    eos_id=None,
    options=None,
) -> Program:
    """Arguments of `generate`, checked, brought to sizes that come back, and placed."""
    config = SpeculativeConfig() if config is None else config
    options = config.sampling if options is None else options
    if draft is None or config.token_tree.depth == 0:
        draft, config = NoDrafts(), config.plain()
    drafter = as_drafter(draft)
    drafter.check(config.token_tree, target.vocab_size)
    prompts, lengths = as_array(prompts), as_array(prompt_lengths)
    batch = check_prompts(prompts, lengths, target.vocab_size)
    budget, room = check_room(max_new_tokens, batch)
    check_context(lengths, budget, target.context_length)
    width = prompts.shape[1]
    if is_concrete(prompts, lengths):
        sizes = bucket_sizes(config, width, room)
        prompts = pad_prompts(prompts, sizes.width)
        lengths = jax.device_put(np.asarray(lengths, np.int32))
    else:
        sizes = Sizes(width, room, config.capacity(width, room))
    if jnp.ndim(key) == 0:
        key = _keys_of_rows(key, np.arange(batch, dtype=np.int32))
    ends = end_tokens(target.eos_id if eos_id is None else eos_id, batch)
    mesh = mesh_of(target.params)
    rows = place_rows(
        mesh,
        (
            key,
            prompts.astype(jnp.int32),
            lengths.astype(jnp.int32),
            budget,
            ends,
            options.for_rows(batch),
        ),
    )
    static = {
        "config": config.program(),
        "room": sizes.room,
        "capacity": sizes.capacity,
        "mesh": mesh,
        "platform": _platform_of(target.params),
    }
    return Program((target, drafter, *rows), static, room)


@jax.jit
def _keys_of_rows(key: Array, rows: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def _platform_of(params: Params) -> str | None:
    """Where parameters lie; None for those that `jit` traces."""
    leaves = jax.tree.leaves(params)
    if not leaves or not all(isinstance(x, jax.Array) for x in leaves):
        return None
    if not is_concrete(*leaves):
        return None
    return next(iter(leaves[0].devices())).platform


_STATIC = ("config", "room", "capacity", "mesh", "platform")


@functools.partial(jax.jit, static_argnames=_STATIC)
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
    state = first_state(request, keys, prompts, lengths, budget, capacity)

    def is_running(carry: tuple[StepState, TextBuffer]) -> Array:
        return jnp.any(carry[0].budget > 0)

    def step(carry: tuple[StepState, TextBuffer]) -> tuple[StepState, TextBuffer]:
        state, emitted = decode_step(carry[0], request)
        return state, carry[1].extend(emitted)

    text = empty_text(len(prompts), room, config.pad_id)
    state, text = jax.lax.while_loop(is_running, step, (state, text))
    result = Generation(text.tokens, text.lengths, text.from_draft, state.metrics)
    return gather(mesh, result)
