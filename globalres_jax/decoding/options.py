"""Sampling options as data: each row of a batch may have its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, TreeVerifier
from globalres_jax.transforms import check_filters, probabilities, safe_temperature
from globalres_jax.validation import (
    LARGEST,
    as_array,
    as_integer,
    is_concrete,
    wrong_kind,
)

_NAMES = ("temperature", "top_k", "top_p", "min_p")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What the logits of target and draft go through, in this order.

    Numbers, or arrays [B] with one for each row of a batch. As arrays under `jit` they
    are data: other values are the same program. A filter that is None is not compiled.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep exactly this many most likely tokens.
      top_p: keep the fewest most likely tokens that together reach this mass.
      min_p: keep tokens at least this fraction as likely as the most likely one.
      max_top_k: no `top_k` is larger. It fixes shapes, so it is static; found by
        itself where the values can be seen.
      greedy: whether the temperature is known to be 0 in every row; likewise.

    Raises:
      ValueError: an option out of range, or a `top_k` above `max_top_k`.
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    max_top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    greedy: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self):
        values = (self.temperature, self.top_k, self.top_p, self.min_p)
        for name, value in zip(_NAMES, values, strict=True):
            is_text = isinstance(value, np.ndarray) and value.dtype.kind not in "iufV"
            if isinstance(value, str | bytes | dict) or is_text:
                raise wrong_kind(name, "a number, or one for each row", value)
        if not all(value is None or _is_number(value) for value in values):
            return  # JAX rebuilds pytrees with placeholders for leaves
        if isinstance(self.top_k, int):
            object.__setattr__(self, "top_k", min(self.top_k, LARGEST))
        check_filters(*values)
        if is_concrete(self.temperature):
            greedy = bool(np.all(np.asarray(self.temperature) == 0))
            object.__setattr__(self, "greedy", greedy)
        if self.top_k is None or not is_concrete(self.top_k):
            return
        largest = int(np.max(np.asarray(self.top_k)))
        if self.max_top_k is not None:
            most = as_integer("max_top_k", self.max_top_k, 1)
            object.__setattr__(self, "max_top_k", most)
        if self.max_top_k is None:
            object.__setattr__(self, "max_top_k", largest)
        elif largest > self.max_top_k:
            raise ValueError(
                f"top_k: {largest} is larger than max_top_k, {self.max_top_k}"
            )

    @property
    def max_support(self) -> int | None:
        """Most tokens that a filtered row can have, as far as shapes know it."""
        return 1 if self.greedy else self.max_top_k

    def for_rows(self, batch: int) -> SamplingOptions:
        """The same with every option as an array [B]; ValueError for another B."""

        def rows(name: str, dtype) -> Array | None:
            value = getattr(self, name)
            if value is None and name != "temperature":
                return None
            array = _as_option(name, value)
            if name == "temperature":
                array = safe_temperature(array, dtype)
            array = array.astype(dtype)
            # For numbers on the host no program is made.
            xp = jnp if isinstance(array, jax.Array) else np
            if array.shape not in ((), (batch,)):
                raise ValueError(
                    f"{name}: expected a number or {batch}, one for each row, got "
                    f"shape {array.shape}"
                )
            return jnp.asarray(xp.broadcast_to(array, (batch,)))

        return dataclasses.replace(
            self,
            temperature=rows("temperature", jnp.float32),
            top_k=rows("top_k", jnp.int32),
            top_p=rows("top_p", jnp.float32),
            min_p=rows("min_p", jnp.float32),
        )

    def to_probabilities(self, logits: Array) -> Array:
        """The distributions that `logits [B, ..., V]` stand for."""
        temperature = 0.0 if self.greedy else self.temperature
        return probabilities(
            logits, temperature, self.top_k, self.top_p, self.min_p, self.max_top_k
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FilteredRows:
    """Distributions of one row of the batch, each computed when it is read.

    The `TargetRows` of a decoding step. A broken row is shown as one whose logits are
    all equal: what is drawn from it is cut off, and up to there the text has the law
    that it would have for any other row in its place.

    Attributes:
      logits: [N, V]; or [V, B, N] of all rows of the batch, as `step.verify`
        has them on a CPU.
      options: of this row, numbers.
      broken: [N] bool, see `broken_rows`.
      row: [] which one, where `logits` are of all.
    """

    logits: Array
    options: SamplingOptions
    broken: Array
    row: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, V)."""
        if self.row is None:
            return self.logits.shape
        return self.logits.shape[2], self.logits.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        """Of the distributions: float32 or wider."""
        return jnp.promote_types(self.logits.dtype, jnp.float32)

    def __getitem__(self, node: Array) -> Array:
        """[V] of `node []`, or [M, V] of `node [M]`."""
        if self.row is None:
            logits = self.logits[node]
        else:
            # Read once: each further pass would jump through memory again.
            logits = jax.lax.optimization_barrier(self.logits[:, self.row, node])
            logits = jnp.moveaxis(logits, 0, -1)
        return self.options.to_probabilities(mended(logits, self.broken[node]))

    def shown_to(self, rule: TreeVerifier) -> FilteredRows | Array:
        """These rows for a rule that reads some of them, else an array of all."""
        if getattr(rule, "reads_rows", False):
            return self
        return self[jnp.arange(self.shape[0])]


def broken_rows(logits: Array) -> Array:
    """[...] bool: whether `logits [..., V]` say nothing: a NaN, or nothing but -inf."""
    # A maximum need not hand a NaN on: on a CPU it depends on the order.
    says = jnp.where(jnp.isnan(logits), 2, logits > -jnp.inf).astype(jnp.int8)
    return jnp.max(says, axis=-1) != 1


def mended(logits: Array, broken: Array) -> Array:
    """`logits [..., V]`, where they are `broken [...]` with all tokens alike."""
    return jnp.where(broken[..., None], 0, logits)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | jax.Array | np.ndarray | np.generic)


def _as_option(name: str, value: Any) -> Array | np.ndarray:
    """A number, or several, as an array; TypeError for what is none."""
    wanted = jnp.integer if name == "top_k" else jnp.number
    shown = "an integer" if name == "top_k" else "a number"
    error = wrong_kind(name, f"{shown}, or one for each row", value)
    try:
        array = as_array(value)
    except (TypeError, ValueError) as reason:
        raise error from reason
    is_real = not jnp.issubdtype(array.dtype, jnp.complexfloating)
    if not (jnp.issubdtype(array.dtype, wanted) and is_real):
        raise error
    return array
