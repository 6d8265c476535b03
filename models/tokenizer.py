"""Text to tokens and back, through the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import tokenizers


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that is equal to another one of the same definition.

    Attributes:
      definition: the JSON text of a `tokenizer.json`.
    """

    definition: str = dataclasses.field(repr=False)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`; ValueError names the file if it is not one."""
        try:
            tokenizer = cls(Path(path).read_text())
            tokenizer._backend.get_vocab_size()
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"source: {path} is no tokenizer: {error}") from error
        return tokenizer

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.definition)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._backend.encode(text).ids

    def decode(self, tokens) -> str:
        """Text of tokens, special ones left out."""
        return self._backend.decode([int(token) for token in tokens])

    def token_id(self, token: str) -> int | None:
        """The number of a token given as text, or None."""
        return self._backend.token_to_id(token)
