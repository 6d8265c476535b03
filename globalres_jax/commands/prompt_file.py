"""A file of prompts, one JSON object a line; a broken line is named by its number."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from globalres_jax.serving.records import Defaults, Record, as_record


class PromptFile(NamedTuple):
    """Prompts, read anew whenever they are gone through, and never held all at once.

    Attributes:
      path: of the file.
      defaults: what holds for lines that do not say it.
      keep_going: whether broken lines are left out rather than errors.
    """

    path: Path
    defaults: Defaults
    keep_going: bool

    def check(self) -> tuple[int, list[int]]:
        """The number of prompts, and the numbers of broken lines, which are said.

        Raises:
          OSError: no such file.
          ValueError: a broken line, if they are not to be left out, or no prompts.
        """
        count, broken = 0, []
        for number, found in self._lines():
            if isinstance(found, Record):
                count += 1
                continue
            self.refuse(number, found)
            broken.append(number)
        if not count:
            raise ValueError(f"--prompts: {self.path} has no prompts")
        return count, broken

    def records(self) -> Iterator[tuple[int, Record]]:
        """Each prompt with the number of its line, from 1 on."""
        for number, found in self._lines():
            if isinstance(found, Record):
                yield number, found

    def refuse(self, number: int, error: Exception) -> None:
        """An error that names the line; a line on stderr where it is left out."""
        said = f"--prompts: {self.path}, line {number}: {error}"
        if not self.keep_going:
            raise ValueError(f"{said} (--keep-going leaves such lines out)")
        print(f"left out: {said}", file=sys.stderr)

    def _lines(self) -> Iterator[tuple[int, Record | Exception]]:
        """What each line that is not blank comes to, or why to nothing."""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    # Some editors begin a file with a mark of its byte order.
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    yield number, as_record(_parsed(text), self.defaults)
                except (ValueError, TypeError, RecursionError) as error:
                    yield number, error


def _parsed(text: str) -> object:
    """JSON in which no name is given twice."""

    def once(pairs: list[tuple[str, object]]) -> dict:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r:.60} is given twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
