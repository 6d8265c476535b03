"""What an argument is: errors that name it, before anything is compiled."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from globalres_jax.bregman import Bregman
from globalres_jax.tree import TokenTree
from globalres_jax.validation import LARGEST, as_integer, as_number, wrong_kind

#: `(name, value) -> value`, or an error that names the argument.
Convert = Callable[[str, Any], Any]


def to_integer(low: int, high: int | None = LARGEST) -> Convert:
    """An integer from `low` on; without `high` a larger one is as good as the largest.

    A device counts in 32 bits.
    """

    def convert(name: str, value: Any) -> int:
        number = as_integer(name, value, low, LARGEST if high else float("inf"))
        return min(number, LARGEST)

    return convert


def optional(convert: Convert) -> Convert:
    """The same, or None."""
    return lambda name, value: None if value is None else convert(name, value)


def to_flag(name: str, value: Any) -> bool:
    """True or False, numpy's too."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise wrong_kind(name, "True or False", value)
    return bool(value)


def to_tree(name: str, value: Any) -> TokenTree:
    """A `TokenTree`."""
    if not isinstance(value, TokenTree):
        raise wrong_kind(name, 'a TokenTree, such as tree.chain(5), or "auto"', value)
    return value


def to_bregman(name: str, value: Any) -> Bregman:
    """A `Bregman` of plain numbers, which can be hashed."""
    if not isinstance(value, Bregman):
        raise wrong_kind(name, "Bregman(alpha=..., token_cost=...)", value)
    return dataclasses.replace(
        value,
        alpha=as_number(f"{name}.alpha", value.alpha),
        token_cost=optional(as_number)(f"{name}.token_cost", value.token_cost),
    )


def to_law(name: str, value: Any) -> Callable | tuple[Callable, ...]:
    """The class of a law or a function that makes one, or several of them."""
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not several or not all(map(callable, several)):
        raise wrong_kind(
            name,
            "a draft law's class, such as IID, or a tuple with one for each level",
            value,
        )
    return several if isinstance(value, list | tuple) else value


def to_verifier(name: str, value: Any) -> Any:
    """A rule for one position, or for whole trees."""
    if inspect.isclass(value):
        raise TypeError(
            f"{name}: got the class {value.__name__}; give a rule, {value.__name__}()"
        )
    walks = callable(getattr(value, "walk", None))
    decides = callable(getattr(value, "prepare", None))
    if not callable(getattr(value, "check", None)) or not (walks or decides):
        raise wrong_kind(name, "a rule, such as verifiers.GlobalResolution()", value)
    return value
