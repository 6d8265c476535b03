"""Logit bias as data: a few tokens of each row, and what is added to theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array
from globalres_jax.validation import (
    as_array,
    as_integer,
    as_number,
    is_concrete,
    wrong_kind,
)

#: Smallest number of tokens that a program has room for: others are the same program.
_SMALLEST = 4

_WANTED = "a dict of token ids and numbers, one for each row, or a LogitBias"


class LogitBias(NamedTuple):
    """What is added to logits before everything else.

    Attributes:
      tokens: [K], or [B, K] for each row; -1 for none.
      values: likewise; -inf forbids a token.
    """

    tokens: Array
    values: Array

    def added_to(self, logits: Array) -> Array:
        """`logits [V]` of one row with the bias [K]."""
        tokens, nothing = self.tokens, len(logits)
        tokens = jnp.where(tokens < 0, nothing, tokens)
        # Of an infinite logit and -inf the sum is none.
        forbids = self.values == -jnp.inf
        values = jnp.where(forbids, 0, self.values).astype(logits.dtype)
        logits = logits.at[tokens].add(values, mode="drop")
        forbidden = jnp.where(forbids, tokens, nothing)
        return logits.at[forbidden].set(-jnp.inf, mode="drop")

    def for_rows(self, batch: int) -> LogitBias:
        """The same as arrays [B, K]; ValueError for other shapes."""
        tokens, values = (as_array(x, "logit_bias") for x in self)
        if tokens.shape != values.shape or tokens.ndim not in (1, 2):
            raise ValueError(
                "logit_bias: expected tokens and values of one shape [K] or "
                f"[{batch}, K], got {tokens.shape} and {values.shape}"
            )
        if tokens.ndim == 2 and len(tokens) != batch:
            raise ValueError(
                f"logit_bias: expected one for each of {batch} rows, got {len(tokens)}"
            )
        shape = batch, tokens.shape[-1]
        # For numbers on the host no program is made.
        xp = jnp if isinstance(tokens, jax.Array) else np
        tokens = xp.broadcast_to(tokens.astype(xp.int32), shape)
        xp = jnp if isinstance(values, jax.Array) else np
        values = xp.broadcast_to(values.astype(xp.float32), shape)
        return LogitBias(jnp.asarray(tokens), jnp.asarray(values))

    def check(self, vocab_size: int | None = None) -> None:
        """TypeError, ValueError for values that are no bias, or tokens none of V."""
        kinds = [as_array(x, "logit_bias").dtype.kind for x in self]
        if kinds[0] not in "iu" or kinds[1] not in "iuf":
            raise wrong_kind("logit_bias", "integer tokens and numbers", self)
        if is_concrete(self.values):
            values = np.asarray(self.values, np.float32)
            wrong = values[~(values < np.inf)]
            if wrong.size:
                raise ValueError(
                    "logit_bias: must be a number, or -inf to forbid a token, got "
                    f"{wrong.flat[0]}"
                )
        if not is_concrete(self.tokens):
            return
        tokens = np.asarray(self.tokens)
        largest = np.inf if vocab_size is None else vocab_size
        wrong = tokens[(tokens < NO_TOKEN) | (tokens >= largest)]
        if wrong.size:
            allowed = "0 on" if vocab_size is None else f"0 to {vocab_size - 1}"
            raise ValueError(
                f"logit_bias: token {wrong.flat[0]} is none, allowed are {allowed}"
            )


def as_pairs(name: str, bias: Any) -> tuple[tuple[int, float], ...] | None:
    """A dict, or pairs, of tokens and numbers as sorted pairs; None if there are none.

    Raises:
      TypeError, ValueError: something else; the argument is named.
    """
    if bias is None:
        return None
    if not isinstance(bias, Mapping | tuple):
        raise wrong_kind(name, "a dict of token ids and numbers", bias)
    try:
        items = dict(bias).items()
    except (TypeError, ValueError) as error:
        raise wrong_kind(name, "a dict of token ids and numbers", bias) from error
    pairs = sorted(
        (as_integer(name, token, 0), float(as_number(name, value)))
        for token, value in items
    )
    if pairs:
        LogitBias(*map(np.asarray, zip(*pairs, strict=True))).check()
    return tuple(pairs) or None


def as_logit_bias(bias: Any) -> LogitBias | None:
    """A dict for all rows, or several for one row each, as arrays."""
    if isinstance(bias, LogitBias):
        if all(isinstance(x, np.ndarray | jax.Array) for x in bias):
            bias.check()
        return bias
    if bias is None or isinstance(bias, Mapping):
        pairs = as_pairs("logit_bias", bias)
        return None if pairs is None else LogitBias(*(x[0] for x in _padded([pairs])))
    if isinstance(bias, str | bytes) or not isinstance(bias, Iterable):
        raise wrong_kind("logit_bias", _WANTED, bias)
    return _padded([as_pairs("logit_bias", one) or () for one in bias])


def _padded(rows: list[tuple[tuple[int, float], ...]]) -> LogitBias:
    """Pairs of each row as arrays [B, K], whose K comes back."""
    most = max(map(len, rows), default=0)
    size = max(_SMALLEST, 1 << max(most - 1, 0).bit_length())
    tokens = np.full((len(rows), size), NO_TOKEN, np.int32)
    values = np.zeros((len(rows), size), np.float32)
    for row, pairs in enumerate(rows):
        for place, (token, value) in enumerate(pairs):
            tokens[row, place], values[row, place] = token, value
    return LogitBias(tokens, values)
