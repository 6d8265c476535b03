"""From the messages of a chat to the text of a prompt, by a model's Jinja template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from globalres_jax.models.bounded_template import BoundedEnvironment

#: Most characters of a template.
LONGEST_TEMPLATE = 1_000_000

#: What messages call their reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    name: str = "default",
) -> str:
    """The prompt for a chat, as `transformers` renders it.

    Args:
      template: Jinja text.
      messages: each has a `role` and `content`, and what else the template reads.
      variables: what the template reads beside the messages.
      name: what to call the template in an error.

    Raises:
      ValueError: the template is broken, refuses the messages, or does not come to an
        end within bounds (`bounded_template`); it says which one, and where.
    """
    try:
        if len(template) > LONGEST_TEMPLATE:
            raise TemplateError(f"it is longer than {LONGEST_TEMPLATE} characters")
        program = _environment().from_string(template)
        chat = [_message(message) for message in messages]
        return program.render(_plain({**variables, "messages": chat}))
    except Exception as error:  # whatever a stranger's program may come to
        where = _line(error)
        where = f"{name}, line {where}" if where else name
        reason = str(error) or type(error).__name__
        if isinstance(error, RecursionError | MemoryError):
            reason = "it goes deeper, or takes more memory, than there is"
        raise ValueError(
            f"tokenizer: its chat template says: {reason} (template {where})"
        ) from error


def _environment() -> BoundedEnvironment:
    """Jinja as chat templates expect it."""

    def refuse(message: str):
        raise TemplateError(message)

    def to_json(
        value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = BoundedEnvironment()
    environment.add_filter("tojson", to_json)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(
        form
    )
    return environment


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what is None, and its reasoning under every name."""
    if not isinstance(message, Mapping):
        raise TypeError(f"messages: expected mappings, got {message!r:.80}")
    found = {key: value for key, value in message.items() if value is not None}
    given = [found[key] for key in _REASONING if key in found]
    if given:
        found = {"thinking": given[0], **found, "reasoning_content": given[0]}
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it: objects have methods that a sandbox does not know."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, Sequence):
        return list(map(_plain, value))
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    return f"<{type(value).__name__}>"


def _line(error: BaseException) -> int | None:
    """The line of the template where it went wrong, if that is known."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        # Jinja gives frames of a template its own name and lines.
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
