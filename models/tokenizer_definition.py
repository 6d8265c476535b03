"""Opens what a `tokenizer.json` defines, whatever it says."""

from __future__ import annotations

import json
from typing import Any

import tokenizers


def open_tokenizer(definition: str) -> tokenizers.Tokenizer:
    """The library's tokenizer.

    Raises:
      ValueError: the definition is none, or is at odds with itself.
    """
    if '"continuing_subword_prefix"' in definition:
        _check_prefix(definition)
    try:
        return tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(str(error)) from error
    except BaseException as error:
        # It panics where a merge makes no token, which is no Exception in Python.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its vocabulary and merges do not fit: {error}") from error


def _check_prefix(definition: str) -> None:
    """ValueError for merges that would make the library end the whole process.

    It cuts the length of the prefix, in bytes, off the second piece of a merge, be it
    within a character.
    """
    try:
        model: Any = json.loads(definition)["model"]
        prefix, merges = model["continuing_subword_prefix"], model["merges"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # nothing to cut, or nothing that the library takes
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for pair in merges:
        pieces = pair.split(" ") if isinstance(pair, str) else pair
        last = pieces[-1] if isinstance(pieces, list) and pieces else None
        if isinstance(last, str) and not last.startswith(prefix):
            raise ValueError(
                f"its merge {pair!r} lacks the prefix {prefix!r} of pieces in a word"
            )
