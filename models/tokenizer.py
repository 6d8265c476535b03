"""Text to tokens and back, through the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from globalres_jax.models import continuation
from globalres_jax.models.tokenizer_definition import open_tokenizer

TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token beside a tokenizer's own, in the words of the `tokenizers` library.

    Attributes:
      content: its text, which is never cut.
      single_word: whether it must stand alone, as a word.
      lstrip, rstrip: whether it takes the spaces before or behind it along.
      normalized: whether it is looked for in the normalized text.
      special: whether `decode` leaves it out.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that is equal to another one of the same definition.

    Attributes:
      definition: the JSON text of a `tokenizer.json`. What it says of cutting or
        padding texts to a length is not heeded: a prompt is never cut.
      chat_template: Jinja text that turns messages into a prompt, or None.
      special_tokens: pairs such as ("bos_token", "<s>"), for the template.
      added_tokens: tokens that the definition lacks, in the order of their numbers.
      named_templates: other chat templates, pairs of name and text.
      split_special_tokens: whether special tokens in a text are read as plain text.
      source: where it was read from, for errors.
    """

    definition: str = dataclasses.field(repr=False)
    chat_template: str | None = dataclasses.field(default=None, repr=False)
    special_tokens: tuple[tuple[str, str], ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    named_templates: tuple[tuple[str, str], ...] = dataclasses.field(
        default=(), repr=False
    )
    split_special_tokens: bool = False
    source: str = dataclasses.field(default="", compare=False)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`, and the options and templates that lie beside it.

        Raises:
          ValueError: a file is not what it should be; it is named.
        """
        from globalres_jax.models.tokenizer_folder import read_tokenizer

        return read_tokenizer(Path(path))

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = open_tokenizer(self.definition)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.split_special_tokens
        for token in self.added_tokens:
            fields = dataclasses.asdict(token)
            backend.add_tokens([tokenizers.AddedToken(fields.pop("content"), **fields)])
        return backend

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Tokens of a text, with those that the model wants at its ends if asked.

        Raises:
          ValueError: it is no text that UTF-8 can write.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: {text[error.start]!a} at {error.start} is half of a character "
                "or a byte that is none; give Unicode text"
            ) from error
        return self._backend.encode(text, add_special_tokens=special_tokens).ids

    def decode(self, tokens) -> str:
        """Text of tokens, special ones left out, and negative ones, which are none."""
        found = [int(token) for token in tokens]
        return self._backend.decode([token for token in found if token >= 0])

    def decode_continuation(self, prompt, tokens) -> str:
        """The text that `tokens` add behind the tokens of a prompt.

        Many tokenizers leave out the space before the first word of a text, and what
        follows a prompt is not the first: with `decode` it would be lost.
        """
        return continuation.continuation(self.decode, _ints(prompt), _ints(tokens))

    def decode_pieces(self, prompt, tokens) -> list[str]:
        """The text that each of `tokens` adds; a character cut in two goes to the last.

        Together they are `decode_continuation(prompt, tokens)`.
        """
        return continuation.pieces(self.decode, _ints(prompt), _ints(tokens))

    def stream_pieces(self, prompt) -> continuation.PieceStream:
        """`decode_pieces` of tokens that come in parts, by its `add` and `end`.

        A character that is not whole yet waits for its last token.
        """
        return continuation.PieceStream(self.decode, _ints(prompt))

    def token_id(self, token: str) -> int | None:
        """The number of a token given as text, or None."""
        return self._backend.token_to_id(token)

    def token_text(self, token: int) -> str | None:
        """A token as the vocabulary has it, or None."""
        return self._backend.id_to_token(token)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        reply: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a chat; encode it with `special_tokens=False`.

        Args:
          messages: each has a `role` ("system", "user", "assistant") and `content`.
          reply: whether to end where the assistant's reply begins.
          tools: descriptions of functions, as JSON schemas; None for none.
          documents: each has a `title` and `text`; None for none.
          chat_template: the name of one of several templates, or a template's text;
            the tokenizer's own if None, which with tools is the one for tools.
          variables: whatever else the template reads, such as `enable_thinking`; they
            come before special tokens of the same name.

        Raises:
          ValueError: there is no template, or it refuses the messages, or does not come
            to an end.
        """
        name, template = self._template(chat_template, tools is not None)
        # Only chats need Jinja.
        from globalres_jax.models.chat_template import render

        given = {
            **dict(self.special_tokens),
            **variables,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": reply,
        }
        where = f"{name!r} of {self.source}" if self.source else repr(name)
        return render(template, messages, given, where)

    def _template(self, wanted: str | None, has_tools: bool) -> tuple[str, str]:
        """The name and text of a template; ValueError if there is none."""
        named = dict(self.named_templates)
        if self.chat_template is not None:
            named.setdefault("default", self.chat_template)
        if wanted is None:
            wanted = "tool_use" if has_tools and "tool_use" in named else "default"
        elif wanted not in named:
            return "given", wanted
        if wanted in named:
            return wanted, named[wanted]
        if named:
            raise ValueError(
                f"tokenizer: has no default chat template; name one of {sorted(named)}"
            )
        raise ValueError("tokenizer: has no chat template")


def _ints(tokens) -> list[int]:
    return [int(token) for token in tokens]
