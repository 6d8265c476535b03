"""Text to tokens and back, through the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from globalres_jax.models.safetensors_folder import read_json
from globalres_jax.models.tokenizer_definition import open_tokenizer

TOKENIZER, OPTIONS = "tokenizer.json", "tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that is equal to another one of the same definition.

    Attributes:
      definition: the JSON text of a `tokenizer.json`.
      chat_template: Jinja text that turns messages into a prompt, or None.
      special_tokens: pairs such as ("bos_token", "<s>"), for the template.
    """

    definition: str = dataclasses.field(repr=False)
    chat_template: str | None = dataclasses.field(default=None, repr=False)
    special_tokens: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`, and the options and template that lie beside it.

        Raises:
          ValueError: a file is not what it should be; it is named.
        """
        path = Path(path)
        options = {}
        if (path.parent / OPTIONS).is_file():
            options = read_json(path.parent / OPTIONS)
        template = options.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        beside = path.parent / "chat_template.jinja"
        if beside.is_file():
            template = beside.read_text()
        special = []
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = options.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                special.append((name, token))
        try:
            tokenizer = cls(path.read_text(), template, tuple(special))
            tokenizer._backend.get_vocab_size()
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"source: {path} is no tokenizer: {error}") from error
        return tokenizer

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        return open_tokenizer(self.definition)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Tokens of a text, with those that the model wants at its ends if asked."""
        return self._backend.encode(text, add_special_tokens=special_tokens).ids

    def decode(self, tokens) -> str:
        """Text of tokens, special ones left out."""
        return self._backend.decode([int(token) for token in tokens])

    def token_id(self, token: str) -> int | None:
        """The number of a token given as text, or None."""
        return self._backend.token_to_id(token)

    def token_text(self, token: int) -> str | None:
        """A token as the vocabulary has it, or None."""
        return self._backend.id_to_token(token)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], reply: bool = True
    ) -> str:
        """The prompt for a chat; encode it with `special_tokens=False`.

        Args:
          messages: each has a `role` ("system", "user", "assistant") and `content`.
          reply: whether to end where the assistant's reply begins.

        Raises:
          ValueError: there is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("tokenizer: has no chat template")
        # Only chats need Jinja.
        from globalres_jax.models.chat_template import render

        return render(self.chat_template, messages, reply, self.special_tokens)
