"""Jinja for templates that strangers wrote: sandboxed, and bounded in time and size.

A checkpoint's chat template is a program. It can reach nothing of Python's; rounds of
loops and calls are counted; and what makes a long text out of short ones is measured
before it is made, since once begun nothing stops it.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Most characters of a text, and most entries of a list, that a template may make.
LONGEST = 10_000_000
#: Most rounds of loops, calls and filters.
MOST_STEPS = 500_000
MOST_SECONDS = 5.0
#: Most bits of a whole number.
_BITS = 10_000

#: Filters whose result may be as long as their value times an argument.
_GROWING = ("center", "indent", "join", "replace", "round", "wordwrap")
_GROWING += ("batch", "slice", "tojson", "truncate", "urlize", "xmlattr")
#: Filters that write out, or join, all that a list holds, as often as it holds it.
_WRITERS = ("string", "tojson", "pprint", "join", "urlencode", "xmlattr", "sum")
_WRITERS += ("escape", "e", "forceescape", "safe", "upper", "lower", "trim", "format")
#: Methods of texts and numbers that grow as such filters do.
_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join")
_METHODS += ("format", "format_map", "translate", "to_bytes")


class GenerationBlock(Extension):
    """`{% generation %}`: marks what the assistant says; its text is as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        """A block that is called, so that what it sets ends with it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("text_of")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def text_of(self, caller: Callable[[], str]) -> str:
        """What stands in the block."""
        return caller()


class _Code(CodeGenerator):
    """Lets the environment see `~`, as it sees the other operators."""

    def visit_Concat(self, node, frame):
        self.write("environment.concat(environment.texts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja for one rendering; the next one takes another.

    What it renders raises `TemplateError` where it exceeds a bound.
    """

    code_generator_class = _Code
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self):
        extensions = [loopcontrols, GenerationBlock]
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
            finalize=self._measured,
        )
        self._steps, self._made = 0, 0
        self._end = time.monotonic() + MOST_SECONDS
        del self.globals["lipsum"]
        for name, function in FILTERS.items():
            self.add_filter(name, function)

    def add_filter(self, name: str, function: Callable) -> None:
        """A filter whose arguments and results are bounded."""

        @functools.wraps(function)  # keeps what tells Jinja of a first argument
        def bounded(*args, **options):
            self.step()
            first = int(hasattr(function, "jinja_pass_arg"))
            if name in ("join", "sum") and not isinstance(args[first], str):
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            shown = args[first:]
            if name == "format":
                self._check_widths(str(shown[0]))
            if name in _WRITERS:
                self._measured(shown[0])
            if name in _GROWING:
                self._check_growth(*shown, *options.values())
            return self._counted(function(*args, **options))

        self.filters[name] = bounded

    def _parse(self, source, name, filename):
        """The template, with a step counted in each round of a loop."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(step).set_lineno(loop.lineno))
        tree.set_environment(self)
        return tree

    def step(self) -> None:
        """Counts; TemplateError if there were too many, or time is up."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise TemplateError(f"it takes more than {MOST_STEPS} steps")
        if time.monotonic() > self._end:
            raise TemplateError(f"it takes more than {MOST_SECONDS:.0f} seconds")

    def call(self, context, function, *args, **options):
        """A call, of which methods that make long texts are bounded."""
        self.step()
        name = getattr(function, "__name__", "")
        owner = getattr(function, "__self__", getattr(function, "__wrapped__", None))
        owner = getattr(owner, "__self__", owner)
        if name in _METHODS and isinstance(owner, str | bytes | int):
            if name == "join" and args and not isinstance(args[0], str):
                args = (list(args[0]), *args[1:])
            if name.startswith("format"):
                self._check_widths(str(owner))
            else:
                self._check_growth(owner, *args, *options.values())
        return self._counted(super().call(context, function, *args, **options))

    def call_binop(self, context, operator: str, left, right):
        """An operator, of which the result is not too large."""
        if operator == "**" and not isinstance(left, float):
            self._check(abs(left).bit_length() * abs(right) <= _BITS)
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                self._check(left.bit_length() + right.bit_length() <= _BITS)
            elif not isinstance(left, float) and not isinstance(right, float):
                sizes = (x if isinstance(x, int) else len(x) for x in (left, right))
                self._check_size(max(next(sizes), 0) * max(next(sizes), 0))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            several = isinstance(right, tuple)
            self._check_growth(
                left if "*" in left else "", *right if several else [right]
            )
            self._check_widths(left)
        return self._counted(super().call_binop(context, operator, left, right))

    def concat(self, parts: Iterable[str]) -> str:
        """The parts of a text, or of a macro, together."""
        found, length = [], 0
        for part in parts:
            length += len(part)
            self._check_size(length)
            found.append(part)
        return self._counted("".join(found))

    def texts(self, values: Iterable) -> Iterable[str]:
        """The values that `~` joins, as texts."""
        return (str(self._measured(value)) for value in values)

    def _measured(self, value):
        """A value that may be written out; TemplateError if that is too long."""
        size_of(value, LONGEST, self._check_size)
        return value

    def _counted(self, value):
        """A result, which counts among all that was made."""
        if isinstance(value, str | bytes | list | tuple):
            self._check_size(len(value))
            self._made += len(value) if len(value) > LONGEST // 1000 else 0
            self._check(self._made <= 100 * LONGEST)
        return value

    def _check_growth(self, value, *arguments) -> None:
        most = 1
        for argument in arguments:
            is_count = isinstance(argument, int)
            most = max(most, argument if is_count else self._size(argument))
        self._check_size(self._size(value) * most)

    def _check_widths(self, form: str) -> None:
        """Of a format such as "%9d" or "{:>9}", and "{:{}}" is none."""
        widths = re.findall(r"%[^a-zA-Z%]*?(\d+)|\{[^{}]*?:[^{}]*?(\d+)", form)
        self._check(max([len(a or b) for a, b in widths], default=0) < 9)
        self._check_size(sum(int(a or b) for a, b in widths))
        self._check(not re.search(r"\{[^{}]*:[^{}]*\{", form))

    def _size(self, value) -> int:
        return max(1, size_of(value, LONGEST, self._check_size))

    def _check_size(self, size: int) -> None:
        self._check(size <= LONGEST)

    def _check(self, allowed: bool) -> None:
        if not allowed:
            raise TemplateError(f"it makes more than {LONGEST} characters")


def size_of(value: Any, most: int, check: Callable[[int], None]) -> int:
    """About as many characters as a value has when it is written out.

    Args:
      value: texts, numbers, and lists and mappings of them.
      most: where to stop, however much there is.
      check: told the size whenever it has grown beyond `most`.
    """
    size, waiting = 0, [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str | bytes):
            size += len(found)
        elif isinstance(found, Mapping):
            size += 8 * len(found) + 8
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple | set | frozenset | range):
            size += 8 * len(found) + 8
            waiting += () if isinstance(found, range) else found
        else:
            size += 1
        if size > most:
            check(size)
            break
    return size
