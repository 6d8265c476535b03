"""What decoding gives: texts, how they ended, counts, log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from globalres_jax.base import Array
from globalres_jax.decoding.buckets import first_columns
from globalres_jax.decoding.emission import TextBuffer
from globalres_jax.decoding.metrics import Metrics
from globalres_jax.decoding.state import StepState


class Generation(NamedTuple):
    """Result of `generate`.

    Log-probabilities are natural logarithms, None unless the config asks for them with
    `log_probabilities` or `top_log_probabilities`; beyond `lengths` they are 0.

    Attributes:
      tokens: [B, T] int32, the config's `pad_id` beyond `lengths`; an end token that
        ended a row is its last token, and so is the one that completed a stop string.
      lengths: [B] number of tokens emitted.
      from_draft: [B, T] bool, the token had been drafted.
      metrics: counts and rates, see `Metrics`.
      failed: [B] bool, the row ended since what the target said next was no
        distribution: a NaN among its logits, or nothing but -inf, be it that options
        forbade all else. The tokens before it are as they should be.
      stopped: [B] bool, the row ended with an end token or a stop string. One that
        neither stopped nor failed reached its length cap. `finish_reasons` puts it in
        words.
      log_probabilities: [B, T] of each token under the target, given all before it,
        before all sampling options.
      sampling_log_probabilities: [B, T] after them: under the distribution that was
        sampled.
      top_tokens: [B, T, k] the likeliest tokens in the place of each, `pad_id` beyond
        `lengths`; k is the config's `top_log_probabilities`.
      top_log_probabilities: [B, T, k] theirs, before all sampling options, descending.
      texts: B texts that the tokens add to the prompts, up to the stop string; on the
        host, and None where no stop strings were asked for.
    """

    tokens: Array
    lengths: Array
    from_draft: Array
    metrics: Metrics
    failed: Array
    stopped: Array
    log_probabilities: Array | None = None
    sampling_log_probabilities: Array | None = None
    top_tokens: Array | None = None
    top_log_probabilities: Array | None = None
    texts: list[str] | None = None

    @property
    def finish_reasons(self) -> list[str]:
        """Why each row ended: "stop", "length" (its cap) or "failed".

        "stop" is for an end token or a stop string. On the host, where the values can
        be seen; for rows that have ended.
        """
        flags = zip(np.asarray(self.failed), np.asarray(self.stopped), strict=True)
        return [
            "failed" if failed else "stop" if stopped else "length"
            for failed, stopped in flags
        ]

    def rows(self) -> list[np.ndarray]:
        """The tokens of each row, on the host."""
        pairs = zip(np.asarray(self.tokens), np.asarray(self.lengths), strict=True)
        return [row[:length] for row, length in pairs]

    def accepted_lengths(self) -> list[list[int]]:
        """For each row how many drafted tokens of each step are in its text.

        A step adds what it accepted and one token of the target's own; an end or a cap
        may have cut the last step's. On the host.
        """
        found = []
        for own, size in zip(~np.asarray(self.from_draft), self.lengths, strict=True):
            ends = np.flatnonzero(own[: int(size)])
            steps = np.diff(ends, prepend=-1) - 1
            left = int(size) - 1 - (int(ends[-1]) if len(ends) else -1)
            found.append([*steps.tolist(), left] if left else steps.tolist())
        return found

    def cut(
        self, lengths: np.ndarray, stopped: np.ndarray, texts: list[str], filler: int
    ) -> Generation:
        """The same up to `lengths [B]`, where some rows have `stopped [B]`.

        Where they would have ended otherwise, further on, does not count.
        """
        result = jax.tree.map(np.asarray, self._replace(texts=None))
        changes = {"lengths": lengths, "stopped": result.stopped | stopped}
        beyond = np.arange(result.tokens.shape[1])[None, :] >= lengths[:, None]
        for name in _BY_TOKEN:
            x = getattr(result, name)
            if x is not None:
                empty = filler if name in ("tokens", "top_tokens") else 0
                at = beyond[..., None] if x.ndim == 3 else beyond
                changes[name] = np.where(at, np.asarray(empty, x.dtype), x)
        changes["failed"] = result.failed & ~stopped
        arrays = jax.device_put(result._replace(**changes))
        return arrays._replace(texts=texts)

    def row(self, index: int) -> Generation:
        """One row alone, B = 1, on the host, with T its length."""
        arrays = self._replace(texts=None)
        one = jax.tree.map(lambda x: np.array(np.asarray(x)[index : index + 1]), arrays)
        length = int(one.lengths[0])
        trimmed = {
            name: getattr(one, name)[:, :length]
            for name in _BY_TOKEN
            if getattr(one, name) is not None
        }
        texts = None if self.texts is None else [self.texts[index]]
        return one._replace(**trimmed, texts=texts)

    def first_columns(self, size: int) -> Generation:
        """The same with T = `size`; what lies beyond must be empty."""
        return Generation(
            *(
                first_columns(x, size) if name in _BY_TOKEN and x is not None else x
                for name, x in zip(self._fields, self, strict=True)
            )
        )


_BY_TOKEN = frozenset(
    {
        "tokens",
        "from_draft",
        "log_probabilities",
        "sampling_log_probabilities",
        "top_tokens",
        "top_log_probabilities",
    }
)


def as_generation(state: StepState, text: TextBuffer) -> Generation:
    """The text so far, and what the state counts."""
    return Generation(
        text.tokens,
        text.lengths,
        text.from_draft,
        state.metrics,
        state.failed,
        state.stopped,
        *(text.scores or ()),
    )
