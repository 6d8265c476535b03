"""A file of answers, one JSON object a line; a second run adds what is missing.

Each answer has the number of its prompt's line, which sample it is, and a fingerprint
of all that the text depends on: what another run wrote is not taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of what JSON can say."""
    said = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class AnswerFile:
    """Answers by line and sample; what is there stays, what is new is added at once.

    Used as a context, which holds the file open.
    """

    def __init__(self, path: Path):
        """Reads what is there, and repairs a last line that was cut off.

        Raises:
          OSError: the file cannot be read or written.
          ValueError: it holds something else.
        """
        self._path = path
        self._answered: dict[tuple[int, int], str] = {}
        if path.exists():
            self._repair()
            self._answered.update(self._read())
        self._left = set(self._answered)

    def __enter__(self) -> Self:
        self._file = self._path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._answered)

    def holds(self, line: int, sample: int, mark: str) -> bool:
        """Whether a request has been answered.

        Raises:
          ValueError: another one of this line and sample has been.
        """
        found = self._answered.get((line, sample))
        if found not in (None, mark):
            raise ValueError(
                f"--out: {self._path} is from another run: what it says of line {line} "
                "was written for another prompt, model or options; give another file"
            )
        self._left.discard((line, sample))
        return found is not None

    def check_all_asked(self) -> None:
        """ValueError if it answers lines or samples that `holds` was never asked of."""
        if self._left:
            line, sample = min(self._left)
            raise ValueError(
                f"--out: {self._path} is from another run: it answers line {line}, "
                f"sample {sample}, for which there is no prompt now; give another file"
            )

    def add(self, line: int, sample: int, mark: str, answer: dict[str, Any]) -> None:
        """Writes an answer, in one piece, out of this process's hands at once."""
        said = {"line": line, "sample": sample, **answer, "fingerprint": mark}
        self._file.write(json.dumps(said, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self._answered[line, sample] = mark

    def _repair(self) -> None:
        """Cuts off what a run that was killed had half written."""
        with self._path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            if not end:
                return
            file.seek(end - 1)
            if file.read() == b"\n":
                return
            keep, block = 0, 1 << 16
            for start in range((end - 1) // block * block, -1, -block):
                file.seek(start)
                found = file.read(block).rfind(b"\n")
                if found >= 0:
                    keep = start + found + 1
                    break
            file.seek(keep)
            # Whatever else the file may be, it is not ours to cut.
            if not file.read(9).startswith(b'{"line": '[: end - keep]):
                raise self._foreign("the last line")
            file.truncate(keep)

    def _read(self) -> Iterator[tuple[tuple[int, int], str]]:
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    found = json.loads(line)
                    place = int(found["line"]), int(found["sample"])
                    yield place, str(found["fingerprint"])
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise self._foreign(f"line {number}") from error

    def _foreign(self, what: str) -> ValueError:
        return ValueError(
            f"--out: {self._path} exists, and {what} of it is no answer of this "
            "command's; give another file"
        )
