"""From the messages of a chat to the text of a prompt, by a model's Jinja template."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    reply: bool,
    special_tokens: Sequence[tuple[str, str]],
) -> str:
    """The prompt for a chat.

    Args:
      template: Jinja text.
      messages: each has a `role` and `content`.
      reply: whether to end where the assistant's reply begins.
      special_tokens: pairs such as ("bos_token", "<s>").

    Raises:
      ValueError: the template is broken, or refuses the messages.
    """
    try:
        return (
            _environment()
            .from_string(template)
            .render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=reply,
                **dict(special_tokens),
            )
        )
    except TemplateError as error:
        raise ValueError(f"tokenizer: its chat template says: {error}") from error


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it."""

    def refuse(message: str):
        raise TemplateError(message)

    def to_json(value, indent=None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(
        form
    )
    return environment
