"""Prompts in a Ray dataset: a class for `map_batches`, one pair of models a worker.

dataset.map_batches(
    TextGenerator,
    fn_constructor_kwargs={"config": gr.SpeculativeConfig(cache_length=512)},
    concurrency=2,
    batch_size=64,
)

Ray itself is not imported here: it calls what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from globalres_jax import models
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.serving.records import (
    CONTENTS,
    NAMES,
    OPTIONS,
    Defaults,
    as_record,
    as_request,
)
from globalres_jax.serving.requests import Completion, GenerationRequest
from globalres_jax.serving.scheduler import generate_many
from globalres_jax.validation import LARGEST, as_integer, wrong_kind

#: Columns of counts and rates.
_METRICS = (
    "mean_acceptance_length",
    "acceptance_rate",
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
)


class TextGenerator:
    """Texts for columns of prompts; the same ones however Ray cuts the dataset.

    A column `prompt`, `messages` or `turns` says what is to be continued, columns
    `max_tokens`, `seed`, `temperature` and others of `records.OPTIONS` how, where they
    are there and neither None nor NaN, which is how tables have what is missing.

    It adds the columns `text`, `tokens`, `num_tokens`, `finish_reason`, `error` (empty
    for none) and, by vLLM's names, counts and rates. A row that cannot be answered has
    its `error`, and the others go on.
    """

    def __init__(
        self,
        target: str = "embedded",
        draft: str | None = None,
        *,
        config: SpeculativeConfig,
        batch: int = 8,
        max_tokens: int = 64,
        seed: int = 0,
        system: str | None = None,
        chat: bool = True,
        dtype: Any = None,
    ):
        """Loads the pair, once for each worker.

        Args:
          target: as `models.load` has it.
          draft: likewise, or "prompt-lookup"; by default "embedded-draft" for
            "embedded", else "prompt-lookup".
          config: how to speculate, with a `cache_length`: slots of a row for prompt,
            text and draft. Its sampling options hold where no column says otherwise.
          batch: rows that are decoded together.
          max_tokens: length cap where no column says otherwise.
          seed: likewise.
          system: first message of a chat.
          chat: whether a text is a user's message where the model has a chat template.
          dtype: of weights and caches, see `models.load`.

        Raises:
          TypeError, ValueError, OSError: an argument that is none, or models that
            cannot be loaded.
        """
        if not isinstance(config, SpeculativeConfig):
            raise wrong_kind("config", "a SpeculativeConfig", config)
        if config.cache_length is None:
            raise ValueError(
                "config: its cache_length is None; give one, so that texts do not "
                "depend on which rows come together"
            )
        if draft is None:
            draft = "embedded-draft" if target == "embedded" else "prompt-lookup"
        self._batch = as_integer("batch", batch, 1, LARGEST)
        self._config = config
        self._defaults = Defaults(config.sampling, max_tokens, seed, system, chat)
        as_record({"prompt": "checks the defaults"}, self._defaults)
        self._target, self._draft = models.load_pair(target, draft, dtype)
        if self._target.tokenizer is None:
            raise ValueError(f"target: {target} has no tokenizer")

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns [n] of a batch with those of the texts beside them."""
        size = len(next(iter(columns.values()), ()))
        added = [_nothing("no answer") for _ in range(size)]
        done = generate_many(
            self._target,
            self._draft,
            self._requests(columns, added),
            config=self._config,
            batch=self._batch,
        )
        for completion in done:
            added[completion.request.name] = _cells(completion)
        found = {name: [row[name] for row in added] for name in _nothing("")}
        tokens = np.empty(size, object)
        tokens[:] = found.pop("tokens")
        texts = {"text", "finish_reason", "error"}
        made = {
            name: np.asarray(cells, object if name in texts else None)
            for name, cells in found.items()
        }
        return {**columns, **made, "tokens": tokens}

    def _requests(
        self, columns: dict[str, np.ndarray], added: list[dict]
    ) -> Iterator[GenerationRequest]:
        """What can be asked, row by row; of what cannot, `added` says why."""
        wanted = [x for x in (*CONTENTS, *OPTIONS, *NAMES) if x in columns]
        for row, _ in enumerate(added):
            cells = {name: _plain(columns[name][row]) for name in wanted}
            given = {name: cell for name, cell in cells.items() if cell is not None}
            try:
                record = as_record(given, self._defaults)
                yield as_request(
                    record, self._defaults, self._target.tokenizer, name=row
                )
            except (ValueError, TypeError) as error:
                added[row] = _nothing(str(error))


def _plain(cell: Any) -> Any:
    """A cell as JSON has it; None for what is missing."""
    if isinstance(cell, np.ndarray | list | tuple):
        return [_plain(x) for x in cell]
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float):
        if np.isnan(cell):
            return None
        # A column of integers with gaps comes as one of floats.
        return int(cell) if cell.is_integer() else cell
    return cell


def _cells(completion: Completion) -> dict[str, Any]:
    """What a row gets."""
    if completion.result is None:
        return _nothing(completion.error)
    metrics = completion.metrics
    return {
        "text": completion.text,
        "tokens": completion.tokens,
        "num_tokens": len(completion.tokens),
        "finish_reason": completion.finish_reason,
        "error": "",
        **{name: metrics[name] for name in _METRICS},
    }


def _nothing(error: str) -> dict[str, Any]:
    """What a row gets that was not answered."""
    return {
        "text": "",
        "tokens": np.zeros(0, np.int32),
        "num_tokens": 0,
        "finish_reason": "error",
        "error": error,
        **dict.fromkeys(_METRICS, 0),
    }
