"""Text as it is written: the loop of `generate` in chunks, with the host in between."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.emission import TextBuffer
from globalres_jax.decoding.generation import Generation, as_generation
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import Program, as_program
from globalres_jax.decoding.progress import STATIC, advance, begin
from globalres_jax.decoding.state import Request, StepState
from globalres_jax.decoding.stop_strings import WatchedText
from globalres_jax.numerics.rows import on_platform
from globalres_jax.sharding import gather
from globalres_jax.validation import LARGEST, as_integer, is_concrete


class Chunk(NamedTuple):
    """What some steps have added to the text of each row.

    Attributes:
      tokens: B arrays of the new tokens of each row, on the host; empty for rows that
        had ended.
      from_draft: B arrays, whether each had been drafted.
      running: [B] bool, on the host, whether the row goes on.
      result: everything so far; in the last chunk what `generate` returns. Its
        `finish_reasons` are those of rows that have ended.
      pieces: where stop strings were asked for, for each row the texts of tokens, in
        their order, that are new and will stay; they lag behind `tokens` by those that
        may yet become a stop string. Together they are `result.texts`.
    """

    tokens: list[np.ndarray]
    from_draft: list[np.ndarray]
    running: np.ndarray
    result: Generation
    pieces: list[list[str]] | None = None


#: Steps between two looks at the text, where nobody said how many.
STEPS = 4


def stream(
    key: Array,
    target: Model,
    draft: Model | Drafter | None,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    eos_id: int | Sequence[int] | Array | None = None,
    options: SamplingOptions | None = None,
    steps_per_chunk: int = STEPS,
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    include_stop: bool = False,
) -> Iterator[Chunk]:
    """`generate` as an iterator: the same tokens, as they are written.

    Two programs are compiled: one reads the prompts, one takes up to `steps_per_chunk`
    steps, and serves any number of them (on a mesh it may be compiled twice, for where
    its arrays lie). Between chunks the host reads what is new. To
    stop early, stop to iterate; what is there by then is the last chunk's `result`.
    For more on the arguments see `generate`.

    Args:
      key: one random key, or [B].
      target: the model whose distribution the text has.
      draft: a cheaper model, another `Drafter`, or None.
      prompts: [B, P] integer tokens, padded on the right.
      prompt_lengths: [B] number of tokens in each prompt.
      config: how to speculate.
      max_new_tokens: length cap of every row, or of each.
      eos_id: tokens that end a row; the target's own if None.
      options: sampling options for each row, in place of the config's.
      steps_per_chunk: decoding steps, each of one token or more for every row that goes
        on, between two looks at the text. More of them cost less time on the host.
      stop: strings that end a row where its text says one, or a list of them for each
        row. Steps that a chunk took beyond are counted in `metrics`.
      include_stop: whether texts keep the string that they end with.

    Returns:
      An iterator over `Chunk`s, at least one, the last when every row has ended.

    Raises:
      TypeError, ValueError: as `generate` does, before the first chunk is asked for;
        and under `jit`, which has no host to hand text to.
    """
    _as_steps(steps_per_chunk)
    rows = prompts, prompt_lengths, config, max_new_tokens, eos_id, options
    program = as_program(key, target, draft, *rows, stop, include_stop)
    return chunks_of(program, steps_per_chunk)


def chunks_of(program: Program, steps_per_chunk: int = STEPS) -> Iterator[Chunk]:
    """`stream` of a program."""
    _check_concrete(program)
    static, most = program.static, _as_steps(steps_per_chunk)
    start = functools.partial(_start, **static)
    return _chunks(program, most, start, functools.partial(_advance, **static))


def compile_stream(
    *args, steps_per_chunk: int = STEPS, **kwargs
) -> Callable[[], Iterator[Chunk]]:
    """Compiles what `stream` with these arguments runs, and returns it as a call.

    So that time to compile and time to run can be told apart. For one device.
    """
    _as_steps(steps_per_chunk)
    return compile_chunks(as_program(*args, **kwargs), steps_per_chunk)


def compile_chunks(
    program: Program, steps_per_chunk: int = STEPS
) -> Callable[[], Iterator[Chunk]]:
    """`compile_stream` of a program."""
    most = _as_steps(steps_per_chunk)
    _check_concrete(program)
    start = _start.trace(*program.arrays, **program.static)
    rest = _unchanging(program)
    following = _advance.lower(*start.out_info, *rest, most, **program.static)
    compiled = start.lower().compile(), following.compile()
    return lambda: _chunks(program, most, *compiled)


def _as_steps(steps_per_chunk: int) -> Array:
    """Data to the program: another number is the same one."""
    return np.int32(as_integer("steps_per_chunk", steps_per_chunk, 1, LARGEST))


def _check_concrete(program: Program) -> None:
    """ValueError where there is no host to hand text to."""
    if not is_concrete(*jax.tree.leaves(program.arrays)):
        raise ValueError(
            "stream: `jit` or `vmap` traces its arguments, and text is handed to the "
            "host; call it outside, or `generate` inside"
        )


def _unchanging(program: Program) -> tuple:
    """Of the program's arrays those that every chunk reads."""
    given = program.arrays
    return given.target, given.drafter, given.ends, given.options


def _chunks(
    program: Program, most: Array, start: Callable, following: Callable
) -> Iterator[Chunk]:
    state, text = start(*program.arrays)
    rest, seen, running = _unchanging(program), 0, True
    places = jax.tree.map(lambda x: x.sharding, (state, text))
    watched, pieces = None if program.stop is None else program.stop.begin(), None
    while np.any(running):
        state, text, found = following(state, text, *rest, most)
        result, running = found[0].first_columns(program.room), np.asarray(found[1])
        if watched is not None:
            result, pieces = _look(watched, result, running, program)
            running = running & ~np.array([row.stopped for row in watched])
            state = state.keep_running(running)
        if program.static["mesh"] is not None:
            # Where the compiler left them is where another program would take them.
            state, text = jax.device_put((state, text), places)
        if not np.any(running):
            result = program.finish(result)
        lengths = np.asarray(result.lengths)
        yield Chunk(
            _new(result.tokens, seen, lengths),
            _new(result.from_draft, seen, lengths),
            running,
            result,
            pieces,
        )
        seen = lengths


def _look(
    watched: list[WatchedText],
    result: Generation,
    running: np.ndarray,
    program: Program,
) -> tuple[Generation, list[list[str]]]:
    """The result up to stop strings, and what is new of the rows' texts."""
    rows = zip(watched, result.rows(), running, strict=True)
    pieces = [text.read(row, not runs) for text, row, runs in rows]
    lengths = np.array([text.length for text in watched], np.int32)
    stopped = np.array([text.stopped for text in watched])
    texts = [text.text for text in watched]
    filler = program.static["config"].pad_id
    return result.cut(lengths, stopped, texts, filler), pieces


def _new(rows: Array, seen: np.ndarray | int, lengths: np.ndarray) -> list[np.ndarray]:
    """Of each row of `rows [B, T]` what lies from `seen` to `lengths`."""
    host, seen = np.asarray(rows), np.broadcast_to(seen, lengths.shape)
    bounds = zip(host, seen, lengths, strict=True)
    return [row[first:last] for row, first, last in bounds]


@functools.partial(jax.jit, static_argnames=STATIC)
def _start(
    target,
    drafter,
    keys,
    prompts,
    lengths,
    budget,
    ends,
    options,
    *,
    config,
    room,
    capacity,
    mesh,
    platform,
) -> tuple[StepState, TextBuffer]:
    with on_platform(platform):
        request = Request(target, drafter, options, ends, config)
        state, text = begin(request, keys, prompts, lengths, budget, room, capacity)
        # What `_advance` may write over must be nobody else's: without this an array
        # that is handed on as it is would be the caller's own.
        return jax.lax.optimization_barrier(state), text


@functools.partial(jax.jit, static_argnames=STATIC, donate_argnums=0)
def _advance(
    state,
    text,
    target,
    drafter,
    ends,
    options,
    most,
    *,
    config,
    room,
    capacity,
    mesh,
    platform,
) -> tuple[StepState, TextBuffer, tuple[Generation, Array]]:
    del room, capacity
    with on_platform(platform):
        request = Request(target, drafter, options, ends, config)
        state, text = advance(state, text, request, most)
        # Likewise what is shown, which the next chunk must not write over.
        metrics, failed, stopped, running = jax.lax.optimization_barrier(
            (state.metrics, state.failed, state.stopped, state.budget > 0)
        )
        shown = state._replace(metrics=metrics, failed=failed, stopped=stopped)
        return state, text, gather(mesh, (as_generation(shown, text), running))
