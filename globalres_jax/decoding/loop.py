"""Text: prefill, then one `lax.while_loop` whose body is the decoding step.

Rows of a batch have their own lengths, keys, options and stops, and nothing leaves the
device inside the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.generation import Generation, as_generation
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import as_program
from globalres_jax.decoding.progress import STATIC, advance, begin
from globalres_jax.decoding.state import Request
from globalres_jax.decoding.stream import Chunk, chunks_of, compile_chunks
from globalres_jax.numerics.rows import on_platform
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
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    include_stop: bool = False,
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
      stop: strings that end a row where its text says one, or a list of them for each
        row. The text is looked at on the host, between chunks of steps; the result has
        `texts`. The token that completes the string is the row's last one.
      include_stop: whether `texts` keep the string that they end with.

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
        stop,
        include_stop,
    )
    if program.stop is not None:
        return _last(chunks_of(program))
    return program.finish(_generate(*program.arrays, **program.static))


def compile_generate(*args, **kwargs) -> Callable[[], Generation]:
    """Compiles what `generate` with these arguments runs, and returns it as a call.

    So that time to compile and time to run can be told apart. It has written a token
    by then: on a CPU, XLA makes part of its matrix products when they first run.
    """
    program = as_program(*args, **kwargs)
    if program.stop is not None:
        chunks = compile_chunks(program)
        return lambda: _last(chunks())
    compiled = _generate.lower(*program.arrays, **program.static).compile()
    budget = jnp.minimum(program.arrays.budget, 1)
    jax.block_until_ready(compiled(*program.arrays._replace(budget=budget)))
    return lambda: program.finish(compiled(*program.arrays))


def _last(chunks: Iterator[Chunk]) -> Generation:
    for chunk in chunks:
        result = chunk.result
    return result


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
