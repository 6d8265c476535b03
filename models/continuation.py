"""Tokens to the text that they add to a prompt.

What a token adds depends on what stands before it: a text loses the space before its
first word, which words in the middle keep, and bytes of one character may be several
tokens. So the prompt is decoded with its continuation, and taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Stands for bytes that are no character, or not yet one.
_INCOMPLETE = "\ufffd"

#: Tokens before a piece that it is decoded with: more than one character has.
_PAST = 16

Decode = Callable[[Sequence[int]], str]


def continuation(decode: Decode, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that `tokens` add behind `prompt`; a character that they complete too.

    Args:
      decode: tokens to text.
      prompt: tokens before; may be empty.
      tokens: what is to be read.
    """
    whole = decode([*prompt, *tokens])
    return whole[_shared(decode(prompt), whole) :]


def pieces(decode: Decode, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the `continuation`.

    A character cut in several goes to its last part. Each piece is decoded with the few
    tokens before it and not with all of them.
    """
    context, fresh = list(prompt), []
    before, shown, found = decode(context), 0, []
    for place, token in enumerate(tokens, start=1):
        fresh.append(token)
        text = decode(context + fresh)
        start = _shared(before, text)
        ready = text if place == len(tokens) else text.rstrip(_INCOMPLETE)
        found.append(ready[start + shown :])
        shown = max(shown, len(ready) - start)
        if len(text) > start and ready == text:
            # What is behind a whole character needs no more of the past than this.
            context, fresh, shown = fresh, [], 0
            before = decode(context)
    return _as_parts_of(continuation(decode, prompt, tokens), found)


class PieceStream:
    """The `pieces` of tokens that come in parts, none of which cuts a character.

    The tokens of a character that is not whole yet are held back, all of them. What
    `add` and `end` return, one after another, are the pieces of all tokens.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]):
        """Begins behind `prompt`, with `decode` from tokens to text."""
        self._decode = decode
        self._context, self._held = list(prompt)[-_PAST:], []

    def add(self, tokens: Sequence[int]) -> list[str]:
        """A piece for each token that is text now: those held back, then new ones."""
        held = [*self._held, *(int(token) for token in tokens)]
        found = pieces(self._decode, self._context, held)
        whole = len(held)
        if found and found[-1].endswith(_INCOMPLETE):
            # The parts before the last one of a character say nothing.
            said = [place for place, piece in enumerate(found[:-1], 1) if piece]
            whole = said[-1] if said else 0
        if len(held) - whole > _PAST:
            whole = len(held)  # bytes that become no character
        return self._show(held, found, whole)

    def end(self) -> list[str]:
        """The pieces of what is held back, a character or not; nothing comes after."""
        held = self._held
        return self._show(held, pieces(self._decode, self._context, held), len(held))

    def _show(self, held: list[int], found: list[str], whole: int) -> list[str]:
        self._context = [*self._context, *held[:whole]][-_PAST:]
        self._held = held[whole:]
        return found[:whole]


def _as_parts_of(whole: str, found: list[str]) -> list[str]:
    """The pieces if they are parts of a text, which from the first other one are one.

    A byte that is none may change what those before it, taken as a character, were.
    """
    at = 0
    for place, piece in enumerate(found):
        if not whole.startswith(piece, at):
            rest = len(found) - place - 1
            return [*found[:place], *[""] * rest, whole[at:]]
        at += len(piece)
    return found if at == len(whole) else [*found[:-1], found[-1] + whole[at:]]


def _shared(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
