"""Opens what a `tokenizer.json` defines, whatever it says."""

from __future__ import annotations

import tokenizers


def open_tokenizer(definition: str) -> tokenizers.Tokenizer:
    """The library's tokenizer.

    Raises:
      ValueError: the definition is none, or is at odds with itself.
    """
    try:
        return tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(str(error)) from error
    except BaseException as error:
        # It panics where a merge makes no token, which is no Exception in Python.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its vocabulary and merges do not fit: {error}") from error
