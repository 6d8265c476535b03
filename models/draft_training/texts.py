"""Texts to train a draft on: written by the target itself, or read from a file.

A draft is asked about texts that the target is writing, so it learns best from such
(on-policy distillation). A model for chats writes its own questions, from where a
user's turn begins, and then answers them (Magpie, arXiv 2406.08464); or it answers
prompts that were given, which is best where they are like those to come.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from globalres_jax.base import Array, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.loop import generate
from globalres_jax.decoding.options import SamplingOptions

#: Stands for what a user says where a chat template is taken apart.
_MARK = "\x1a"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Rows of tokens.

    Attributes:
      tokens: [R, L] int32, padded on the right with 0.
      starts: [R] tokens in front that nobody sampled.
      lengths: [R] tokens of each text, those in front included.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows) -> Texts:
        return Texts(self.tokens[rows], self.starts[rows], self.lengths[rows])

    def save(self, path: Path) -> None:
        """Writes an .npz, two bytes a token where they fit."""
        small = self.tokens.max(initial=0) < 1 << 16
        tokens = self.tokens.astype(np.uint16 if small else np.int32)
        whole = path.with_suffix(".tmp")
        with whole.open("wb") as file:
            np.savez_compressed(
                file, tokens=tokens, starts=self.starts, lengths=self.lengths
            )
        whole.replace(path)

    @classmethod
    def read(cls, path: Path) -> Texts:
        """Reads what `save` has written."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = (field.name for field in dataclasses.fields(cls))
            return cls(*(archive[name].astype(np.int32) for name in names))


def join(parts: Sequence[Texts]) -> Texts:
    """All rows, one below the other."""
    names = (field.name for field in dataclasses.fields(Texts))
    return Texts(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a target writes texts.

    Attributes:
      rows: texts at once.
      length: tokens of a row, what stands in front included.
      question: most tokens of a chat's question.
      temperatures: of the texts in turn; questions are sampled at 1.
      past_ends: whether texts go on behind an end token, so that rows are full.
    """

    rows: int = 32
    length: int = 256
    question: int = 48
    temperatures: tuple[float, ...] = (1.0,)
    past_ends: bool = False


def write_texts(
    key: Array,
    target: Model,
    sampling: Sampling,
    prompts: Sequence[list[int]] = (),
) -> Texts:
    """One batch of texts that the target writes.

    Args:
      key: random key.
      target: has a tokenizer.
      sampling: sizes and temperatures.
      prompts: tokens in front of the texts, of which each row gets some at random, each
        less than a row; without any, a model for chats asks itself.

    Raises:
      ValueError: the length has no room for a text.
    """
    key_question, key_answer = jax.random.split(key)
    rows = sampling.rows
    if prompts:
        chosen = jax.random.randint(key_question, (rows,), 0, len(prompts))
        begun = [list(prompts[index]) for index in chosen.tolist()]
        starts = [len(prompt) for prompt in begun]
    else:
        begun, starts = _asked(key_question, target, sampling)
    room = [sampling.length - len(prompt) for prompt in begun]
    repeats = -(-rows // len(sampling.temperatures))
    answers = _continue(
        key_answer,
        target,
        begun,
        room,
        np.tile(sampling.temperatures, repeats)[:rows],
        ends=() if sampling.past_ends else None,
        keep_end=True,
    )
    texts = [prompt + answer for prompt, answer in zip(begun, answers, strict=True)]
    return as_rows(texts, starts, sampling.length)


def _asked(
    key: Array, target: Model, sampling: Sampling
) -> tuple[list[list[int]], list[int]]:
    """What a target writes before it answers, and how much of each nobody sampled."""
    opening, closing = text_frame(target, sampling)
    prompts = [opening] * sampling.rows
    if closing:
        most = [sampling.question] * sampling.rows
        asked = _continue(key, target, prompts, most, 1.0)
        prompts = [opening + question + closing for question in asked]
    return prompts, [len(opening)] * sampling.rows


def fitting_prompts(prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Those that hold something, and leave room for a text in a row of `length` tokens.

    Raises:
      ValueError: none does.
    """
    found = [prompt for prompt in prompts if 0 < len(prompt) < length]
    if not found:
        sizes = ", ".join(map(str, sorted(map(len, prompts))[:3]))
        raise ValueError(
            f"--prompts: none leaves room for a text in --length {length}; the "
            f"shortest have {sizes} tokens"
        )
    return found


def text_frame(target: Model, sampling: Sampling) -> tuple[list[int], list[int]]:
    """`chat_frame`; ValueError if it leaves no room for a text."""
    opening, closing = chat_frame(target)
    need = len(opening) + len(closing) + (sampling.question if closing else 0) + 1
    if need >= sampling.length:
        raise ValueError(
            f"length: {sampling.length} tokens leave no room for a text; with its "
            f"question and what stands around it takes {need}"
        )
    return opening, closing


def chat_frame(target: Model) -> tuple[list[int], list[int]]:
    """Tokens before and behind a user's first message; `[...], []` without chats.

    What is no model for chats begins with what its tokenizer puts before a text, or
    with an end of text.
    """
    tokenizer = target.tokenizer
    if getattr(tokenizer, "chat_template", None) is not None:
        text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}])
        parts = text.split(_MARK)
        if len(parts) == 2 and all(parts):
            before, behind = (tokenizer.encode(p, special_tokens=False) for p in parts)
            return before, behind
    opening = list(tokenizer.encode(""))
    if not opening and target.eos_id is not None:
        opening = [int(np.ravel(target.eos_id)[0])]
    return opening or [0], []


def as_rows(texts: Sequence[list[int]], starts: Sequence[int], length: int) -> Texts:
    """Texts as rows of so many tokens; longer ones are cut."""
    tokens = np.zeros((len(texts), length), np.int32)
    lengths = np.minimum([len(text) for text in texts], length).astype(np.int32)
    for row, text, count in zip(tokens, texts, lengths, strict=True):
        row[:count] = text[:count]
    return Texts(tokens, np.asarray(starts, np.int32), lengths)


def read_texts(path: Path, target: Model, length: int) -> Texts:
    """A text file in rows of `length` tokens of the target's.

    Raises:
      ValueError: it is shorter than one row, or no UTF-8.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {path} is not UTF-8: {error}") from error
    ids = target.tokenizer.encode(text)
    count = len(ids) // length
    if count == 0:
        raise ValueError(
            f"text: {path} has {len(ids)} tokens, and a row (length) takes {length}"
        )
    tokens = np.asarray(ids[: count * length], np.int32).reshape(count, length)
    full = np.full(count, length, np.int32)
    return Texts(tokens, np.ones_like(full), full)


def _continue(
    key: Array,
    target: Model,
    prompts: list[list[int]],
    room: list[int],
    temperatures,
    ends=None,
    keep_end: bool = False,
) -> list[list[int]]:
    """What the target writes behind each prompt, by plain decoding."""
    width = max(map(len, prompts))
    padded = np.asarray([p + [0] * (width - len(p)) for p in prompts], np.int32)
    written = generate(
        key,
        target,
        None,
        padded,
        np.asarray([len(p) for p in prompts], np.int32),
        _plain(),
        room,
        ends,
        SamplingOptions(temperature=np.asarray(temperatures, np.float32)),
    )
    rows = zip(
        np.asarray(written.tokens),
        np.asarray(written.lengths),
        np.asarray(written.stopped),
        strict=True,
    )
    return [
        row[: count - (stopped and not keep_end)].tolist()
        for row, count, stopped in rows
    ]


@functools.cache
def _plain() -> SpeculativeConfig:
    return SpeculativeConfig(draft_length=0)
