"""Continuous batching: a row that has ended makes room for the next request.

The host decides which request has which row; all else is the compiled step. Nothing is
compiled for a request but what its shapes need: one program to read prompts of each
width of `decoding.buckets`, and one step for each kind of options (which filters there
are, not their values).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from globalres_jax.base import Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.request import check_drafter, check_model
from globalres_jax.decoding.stop_strings import WatchedText
from globalres_jax.decoding.stream import STEPS
from globalres_jax.drafters import as_drafter
from globalres_jax.serving.admission import Admitted, Pair, settle
from globalres_jax.serving.requests import Completion, GenerationRequest
from globalres_jax.serving.rows import Rows, advance_rows, insert, keep_running
from globalres_jax.validation import LARGEST, as_integer, wrong_kind

#: Requests of other kinds that are held back, for each row of a batch, while those of
#: the kind at hand come first.
_HELD_BACK = 8


def generate_many(
    target: Model,
    draft: Model | Drafter | None,
    requests: Iterable[GenerationRequest],
    *,
    config: SpeculativeConfig | None = None,
    batch: int = 8,
    steps_per_look: int = 16,
) -> Iterator[Completion]:
    """Texts of any number of requests, each as soon as it has ended.

    A request's tokens depend on its own key, prompt and options, and on the length of
    the caches, which is the same for all; not on the batch, nor on the order. They are
    those that `generate` writes for it alone.

    Requests whose options have the same filters share a batch. Of those with others (or
    which are greedy) a few are held back meanwhile, so that every kind has its turn.

    Args:
      target: the model whose distribution the texts have.
      draft: a cheaper model over the same vocabulary, another `Drafter`, or None.
      requests: any iterable; they are read as rows become free.
      config: how to speculate; `SpeculativeConfig()` if None. Its sampling options are
        those of requests that have none. Its `cache_length`, slots of a row for prompt,
        text and tree, is what the longest request needs if it is None, and so is a
        tree that is to be chosen; `requests` must then be a list.
      batch: number of rows B.
      steps_per_look: most decoding steps without a look at the rows; where a row ends,
        the host looks at once, and where there are stop strings after a few steps.

    Returns:
      An iterator over `Completion`s, in the order in which they end, one for each
      request. One that is refused, such as one that is longer than the caches, has its
      `error`, and the others go on.

    Raises:
      TypeError, ValueError: models, config or numbers that are none, before the first
        is asked for; what is no `GenerationRequest`, when its turn comes.
    """
    config = SpeculativeConfig() if config is None else config
    if not isinstance(config, SpeculativeConfig):
        raise wrong_kind("config", "a SpeculativeConfig", config)
    check_model("target", target)
    if draft is not None:
        check_drafter(as_drafter(draft))
    batch = as_integer("batch", batch, 1, LARGEST)
    most = as_integer("steps_per_look", steps_per_look, 1, LARGEST)
    if not isinstance(requests, Iterable):
        raise wrong_kind("requests", "an iterable of GenerationRequest", requests)
    if jax.process_count() > 1:
        raise ValueError(
            f"generate_many: runs in one process, and there are {jax.process_count()}"
        )
    pair = settle(target, draft, requests, config, batch)
    return _serve(_Queue(_admitted(pair, requests), _HELD_BACK * batch), batch, most)


def _admitted(
    pair: Pair, requests: Iterable[GenerationRequest]
) -> Iterator[Admitted | Completion]:
    for index, request in enumerate(requests):
        if not isinstance(request, GenerationRequest):
            raise wrong_kind(f"requests[{index}]", "a GenerationRequest", request)
        yield pair.admit(index, request)


class _Queue:
    """Requests in their order, of which some are held back."""

    def __init__(self, source: Iterator[Admitted | Completion], most: int):
        self._source, self._most = source, most
        self._held_back: deque[Admitted] = deque()

    def take(self, kind: tuple | None) -> Admitted | Completion | None:
        """The next request of a kind (of any, if None), or one that was refused.

        None where there is none among those that may be held back.
        """
        for place, item in enumerate(self._held_back):
            if kind in (None, item.kind):
                del self._held_back[place]
                return item
        while len(self._held_back) < self._most:
            item = next(self._source, None)
            if not isinstance(item, Admitted) or kind in (None, item.kind):
                return item
            self._held_back.append(item)
        return None


def _serve(queue: _Queue, batch: int, most: int) -> Iterator[Completion]:
    """The loop: fill the rows, advance until one ends, hand out what has ended."""
    rows: Rows | None = None
    kind: tuple | None = None
    at: dict[int, Admitted] = {}
    watched: dict[int, WatchedText] = {}
    while True:
        while len(at) < batch and (item := queue.take(kind)) is not None:
            if isinstance(item, Completion):
                yield item
                continue
            row = next(row for row in range(batch) if row not in at)
            rows, kind = insert(rows, row, item.program, batch), item.kind
            at[row] = item
            if item.program.stop is not None:
                (watched[row],) = item.program.stop.begin()
        if not at and rows is None:
            return
        if not at:
            rows = kind = None  # the turn of another kind
            continue
        steps = min(most, STEPS) if watched else most
        rows = advance_rows(rows, next(iter(at.values())).program, steps)
        running = _read(watched, rows)
        if watched:
            rows = keep_running(rows, running)
        for row in [row for row in at if not running[row]]:
            yield _completion(at.pop(row), rows, row, watched.pop(row, None))


def _read(watched: dict[int, WatchedText], rows: Rows) -> np.ndarray:
    """Which rows go on [B], after a look for stop strings at those that have some."""
    running = rows.running
    if not watched:
        return running
    tokens, lengths = np.asarray(rows.text.tokens), np.asarray(rows.text.lengths)
    goes_on = running.copy()
    for row, text in watched.items():
        text.read(tokens[row, : lengths[row]], ended=not running[row])
        goes_on[row] &= not text.stopped
    return goes_on


def _completion(
    item: Admitted, rows: Rows, row: int, watched: WatchedText | None
) -> Completion:
    result, text = rows.result(row), None
    tokenizer = item.program.arrays.target.tokenizer
    if watched is not None:
        text = watched.text
        lengths, stopped = np.array([watched.length]), np.array([watched.stopped])
        # What fills the columns behind is cut off.
        result = result.cut(lengths.astype(np.int32), stopped, [text], 0).row(0)
    elif tokenizer is not None:
        text = tokenizer.decode_continuation(item.tokens, result.tokens[0])
    return Completion(item.index, item.request, item.tokens, result, text)
