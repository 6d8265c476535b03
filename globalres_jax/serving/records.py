"""Prompts as JSON has them: objects with a prompt and, where they differ, options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from globalres_jax.commands.seeds import key_of_seed
from globalres_jax.decoding.options import NUMBERS, SamplingOptions
from globalres_jax.decoding.request import check_room
from globalres_jax.serving.requests import GenerationRequest
from globalres_jax.validation import wrong_kind

#: One of these says what is to be continued; `turns` is MT-Bench's, its first counts.
CONTENTS = ("prompt", "messages", "turns")
SAMPLING = tuple(NUMBERS)
OPTIONS = (*SAMPLING, "max_tokens", "seed")
_WHOLE = ("top_k", "min_new_tokens", "max_tokens", "seed")
#: What is handed on; of these, all but the first two are MT-Bench's.
NAMES = ("id", "question_id")
_IGNORED = ("category", "reference")


class Record(NamedTuple):
    """One prompt, checked.

    Attributes:
      name: the record's `id` or `question_id`, None without.
      content: a text, or messages with `role` and `content`.
      options: those that it gives, by name, of `OPTIONS`.
    """

    name: Any
    content: str | list[dict]
    options: dict[str, Any]


class Defaults(NamedTuple):
    """What holds for records that do not say it.

    Attributes:
      sampling: options.
      max_tokens: length cap.
      seed: up to 64 bits.
      system: first message of a chat, or None.
      chat: whether a text is a user's message where the model has a chat template.
      stop: strings that end a text, or None.
      include_stop: whether texts keep them.
    """

    sampling: SamplingOptions
    max_tokens: int = 64
    seed: int = 0
    system: str | None = None
    chat: bool = True
    stop: list[str] | None = None
    include_stop: bool = False


def as_record(found: Any, defaults: Defaults) -> Record:
    """Checks an object as JSON has it.

    Raises:
      ValueError, TypeError: it is none, has no prompt, unknown names, or options out of
        range; what is wrong is named.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"expected an object with a prompt, got {found!r:.60}")
    known = (*CONTENTS, *OPTIONS, *NAMES, *_IGNORED)
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(
            f"unknown name {unknown[0]!r:.60}; known are {', '.join(known)}"
        )
    given = [name for name in CONTENTS if name in found]
    if len(given) != 1:
        raise ValueError(
            f"expected one of {', '.join(CONTENTS)}, got "
            f"{' and '.join(given) or 'none of them'}"
        )
    name = next((found[name] for name in NAMES if name in found), None)
    options = {option: found[option] for option in OPTIONS if option in found}
    for option, value in options.items():
        whole = option in _WHOLE
        number = isinstance(value, int if whole else int | float)
        if isinstance(value, bool) or not (number or value is None):
            kind = "an integer" if whole else "a number"
            raise wrong_kind(option, f"{kind} or null", value)
    record = Record(name, _content(given[0], found[given[0]]), options)
    _ = _sampling(record, defaults), key_of_seed(_of(record, "seed", defaults), "seed")
    check_room(length_cap(record, defaults), 1)
    return record


def as_request(
    record: Record,
    defaults: Defaults,
    tokenizer: Any,
    sample: int = 0,
    name: Any = None,
) -> GenerationRequest:
    """A record for `generate_many`; `sample` tells apart several texts of one record.

    Args:
      record: the prompt.
      defaults: what it does not say.
      tokenizer: the target's.
      sample: from 0 on.
      name: comes back with the result.

    Raises:
      ValueError: messages, or a system message, for a model without a chat template.
    """
    return GenerationRequest(
        prompt=prompt_tokens(record, defaults, tokenizer),
        max_new_tokens=length_cap(record, defaults),
        key=jax.random.fold_in(
            key_of_seed(_of(record, "seed", defaults), "seed"), np.uint32(sample)
        ),
        options=_sampling(record, defaults),
        stop=defaults.stop,
        include_stop=defaults.include_stop,
        name=name,
    )


def _content(name: str, value: Any) -> str | list[dict]:
    if name == "turns":
        if not isinstance(value, list) or not value:
            raise wrong_kind(name, "a list of texts", value)
        value = value[0]
    if name == "messages":
        parts = ("role", "content")
        if not isinstance(value, list) or not value:
            raise wrong_kind(name, "a list of messages", value)
        for message in value:
            is_message = isinstance(message, Mapping) and all(
                isinstance(message.get(part), str) for part in parts
            )
            if not is_message:
                raise wrong_kind(name, "objects with texts `role`, `content`", message)
        return [dict(message) for message in value]
    if not isinstance(value, str):
        raise wrong_kind(name, "a text", value)
    if not value:
        raise ValueError(f"{name}: empty; give at least one character")
    return value


def length_cap(record: Record, defaults: Defaults) -> int:
    """Most new tokens of a record."""
    return _of(record, "max_tokens", defaults)


def _of(record: Record, name: str, defaults: Defaults) -> int:
    value = record.options.get(name)
    return getattr(defaults, name) if value is None else value


def _sampling(record: Record, defaults: Defaults) -> SamplingOptions:
    """The defaults with the record's own; null is no filter."""
    own = {name: x for name, x in record.options.items() if name in SAMPLING}
    if own.get("temperature", 0) is None:
        del own["temperature"]
    if not own:
        return defaults.sampling
    return dataclasses.replace(defaults.sampling, max_top_k=None, greedy=False, **own)


def prompt_tokens(record: Record, defaults: Defaults, tokenizer: Any) -> list[int]:
    """The tokens of a record; a text is a user's message to a model for chats.

    Raises:
      ValueError: as `as_request`.
    """
    messages, system = record.content, defaults.system
    has_template = tokenizer.chat_template is not None and defaults.chat
    if not has_template:
        if system is not None:
            raise ValueError("--system: needs a model with a chat template")
        if not isinstance(messages, str):
            raise ValueError("messages: need a model with a chat template")
        return tokenizer.encode(messages)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    text = tokenizer.apply_chat_template(messages)
    return tokenizer.encode(text, special_tokens=False)
