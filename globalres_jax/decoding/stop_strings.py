"""Stop strings: where a text ends that says one, looked for on the host.

Which tokens spell a string depends on the tokenizer and on what stands before, so no
automaton over tokens is exact. The text itself is looked at, between chunks of steps,
token by token: where it ends does not depend on how many come at once. A row may have
been decoded further by then; that is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from globalres_jax.base import Array
from globalres_jax.decoding.kinds import to_flag
from globalres_jax.validation import is_concrete, wrong_kind

_WANTED = "a string, several, or a list of strings for each row"


class StopStrings(NamedTuple):
    """What ends the texts of a request.

    Attributes:
      strings: for each row.
      include: whether texts keep the string that they end with.
      least: for each row the number of tokens that must be there before one counts.
      prompts: tokens of each row.
      tokenizer: the target's.
    """

    strings: list[tuple[str, ...]]
    include: bool
    least: list[int]
    prompts: list[list[int]]
    tokenizer: Any

    def begin(self) -> list[WatchedText]:
        """The texts of the rows, empty."""
        rows = zip(self.strings, self.least, self.prompts, strict=True)
        return [
            WatchedText(
                self.tokenizer.stream_pieces(prompt), strings, self.include, least
            )
            for strings, least, prompt in rows
        ]


def as_stop_strings(
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None,
    include_stop: bool,
    tokenizer: Any,
    prompts: Array,
    lengths: Array,
    least: Any = None,
) -> StopStrings | None:
    """What was asked for, checked; None where there are no stop strings.

    Args:
      stop: a string, several, or several for each row.
      include_stop: whether texts keep them.
      tokenizer: the target's.
      prompts: [B, P] tokens.
      lengths: [B].
      least: `min_new_tokens` of the options.

    Raises:
      TypeError, ValueError: something else, an empty string, no tokenizer, or arguments
        that `jit` traces.
    """
    include = to_flag("include_stop", include_stop)
    batch = len(prompts)
    if stop is None:
        if include:
            raise ValueError("include_stop: there are no stop strings to include")
        return None
    rows = stop_rows(stop, batch)
    if not any(rows):
        return None
    if tokenizer is None:
        raise ValueError("stop: the target has no tokenizer to read its text with")
    if not callable(getattr(tokenizer, "stream_pieces", None)):
        raise wrong_kind(
            "stop", "a target whose tokenizer has `stream_pieces`", tokenizer
        )
    least = 0 if least is None else least
    if not is_concrete(prompts, lengths, least):
        raise ValueError(
            "stop: `jit` or `vmap` traces the arguments, and text is looked at on the "
            "host; call `generate` outside"
        )
    host = np.asarray(prompts), np.asarray(lengths)
    tokens = [row[:length].tolist() for row, length in zip(*host, strict=True)]
    least = np.broadcast_to(np.asarray(least), (batch,)).tolist()
    return StopStrings(rows, include, least, tokens, tokenizer)


def stop_rows(stop: Any, batch: int) -> list[tuple[str, ...]]:
    """The strings of each row, checked; for errors see `as_stop_strings`."""
    if isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list | tuple):
        raise wrong_kind("stop", _WANTED, stop)
    if all(isinstance(one, str) for one in stop):
        rows = [tuple(stop)] * batch
    else:
        rows = [(one,) if isinstance(one, str) else one for one in stop]
    if not all(isinstance(row, list | tuple) for row in rows):
        raise wrong_kind("stop", _WANTED, stop)
    if len(rows) != batch:
        raise ValueError(f"stop: expected strings for {batch} rows, got {len(rows)}")
    rows = [tuple(row) for row in rows]
    strings = [one for row in rows for one in row]
    for one in strings:
        if not isinstance(one, str):
            raise wrong_kind("stop", _WANTED, one)
        if not one:
            raise ValueError("stop: an empty string, which every text has")
    return rows


class WatchedText:
    """The text of one row, up to the first place where it says a stop string.

    Of two strings that are there the one counts that is complete first, and of those
    the longest. The token that completes it is the last one of the row, though its text
    may go on behind the string; that is cut off.

    Attributes:
      length: tokens that will not be taken back: all but those of a character that is
        not whole yet.
      stopped: whether a stop string was met.
      shown: number of characters that will not be taken back: all but what may yet
        become a stop string.
    """

    def __init__(
        self, pieces: Any, strings: tuple[str, ...], include: bool, least: int
    ):
        """Begins: `pieces` reads tokens as `PieceStream` does; see `StopStrings`."""
        self.length, self.stopped, self.shown = 0, False, 0
        self._pieces, self._strings, self._least = pieces, strings, least
        self._include, self._taken, self._ended = include, 0, False
        self._heard, self._ends = "", []

    @property
    def text(self) -> str:
        """What will not be taken back."""
        return self._heard[: self.shown]

    def read(self, tokens: Sequence[int], ended: bool) -> list[str]:
        """Reads on in the row, and says what of its text is new and will stay.

        Args:
          tokens: [T] of the row so far, of which some have been read before.
          ended: whether there will be no more.

        Returns:
          Texts of tokens, in their order; they lag behind by those that are held back.
        """
        for token in tokens[self._taken :]:
            self._taken += 1
            # One at a time: what they say must not depend on how many came at once.
            self._hear(self._pieces.add([int(token)]))
        if ended:
            self._hear(self._pieces.end())
            self._ended = True
        return self._show()

    def _hear(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            if self._ended:
                return
            before = len(self._heard)
            self.length += 1
            self._heard += piece
            self._ends.append(len(self._heard))
            met = self._met(before) if self.length >= self._least else None
            if met is not None:
                end, start = met
                self._heard = self._heard[: end if self._include else start]
                self._ended = self.stopped = True

    def _met(self, before: int) -> tuple[int, int] | None:
        """End and start of the first stop string that ends behind `before`."""
        found = []
        for string in self._strings:
            start = self._heard.find(string, max(0, before - len(string) + 1))
            if start >= 0:
                found.append((start + len(string), start))
        return min(found, default=None)

    def _show(self) -> list[str]:
        """Texts of the tokens that can be shown by now, and no more of them later."""
        heard, shown = self._heard, []
        sure = len(heard) - (0 if self._ended or self._include else self._begun())
        while self._ends and (self._ended or self._ends[0] <= sure):
            end = min(self._ends.pop(0), len(heard))
            shown.append(heard[self.shown : end])
            self.shown = max(self.shown, end)
        return shown

    def _begun(self) -> int:
        """Most characters at the end that a stop string begins with."""
        return max(
            (
                count
                for string in self._strings
                for count in range(1, len(string))
                if self._heard.endswith(string[:count])
            ),
            default=0,
        )
