"""Sampling options as data: each row of a batch may have its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, TreeVerifier
from globalres_jax.bregman import Bregman
from globalres_jax.decoding.logit_bias import as_logit_bias
from globalres_jax.transforms import (
    check_filters,
    check_option,
    nearest_among,
    probabilities,
    safe_temperature,
)
from globalres_jax.validation import (
    LARGEST,
    as_array,
    as_integer,
    is_concrete,
    wrong_kind,
)

#: Options that are numbers, and the types that they have on a device.
NUMBERS = {
    "temperature": jnp.float32,
    "top_k": jnp.int32,
    "top_p": jnp.float32,
    "min_p": jnp.float32,
    "repetition_penalty": jnp.float32,
    "presence_penalty": jnp.float32,
    "frequency_penalty": jnp.float32,
    "min_new_tokens": jnp.int32,
    "draft_temperature": jnp.float32,
}

#: Those of them that depend on the text.
OF_TEXT = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_new_tokens",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What the logits of target and draft go through.

    Numbers, or arrays [B] with one for each row of a batch. As arrays under `jit` they
    are data: other values are the same program. What is None is not compiled. The
    order: logit bias, repetition, frequency and presence penalty, `min_new_tokens`,
    temperature, top-k, top-p, min-p; or temperature, then a Bregman transform of what
    top-k keeps. Penalties depend on the text: every node of a draft tree has its own,
    of what was written before it and the path down to it.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep exactly this many most likely tokens.
      top_p: keep the fewest most likely tokens that together reach this mass.
      min_p: keep tokens at least this fraction as likely as the most likely one.
      repetition_penalty: logits of tokens in prompt or output are divided by it if
        they are positive, else multiplied; above 1 there is less repetition (arXiv
        1909.05858, as in transformers and vLLM).
      presence_penalty: taken off the logits of tokens in the output.
      frequency_penalty: taken off them once for each time that the output has them.
      min_new_tokens: tokens that end a row are forbidden until it has so many; and
        stop strings do not count before.
      logit_bias: what is added to the logits of some tokens, -inf to forbid them: a
        dict from token id to number, a list of one for each row, or a `LogitBias`.
      bregman: a transform of what `top_k` keeps, see `Bregman`; without `top_p` and
        `min_p`.
      draft_temperature: the draft's logits are divided by `temperature` times this,
        the target's are not; None is 1. What is drawn from is what is verified, so it
        changes how much is accepted and nothing else.
      max_top_k: no `top_k` is larger. It fixes shapes, so it is static; found by
        itself where the values can be seen.
      greedy: whether the temperature is known to be 0 in every row; likewise.

    Raises:
      TypeError: an option of another kind.
      ValueError: an option out of range, a `top_k` above `max_top_k`, or options that
        contradict each other.
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    min_new_tokens: Any = None
    logit_bias: Any = None
    bregman: Bregman | None = None
    draft_temperature: Any = None
    max_top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    greedy: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self):
        values = {name: getattr(self, name) for name in NUMBERS}
        for name, value in values.items():
            is_text = isinstance(value, np.ndarray) and value.dtype.kind not in "iufV"
            if isinstance(value, str | bytes | dict) or is_text:
                raise wrong_kind(name, "a number, or one for each row", value)
        object.__setattr__(self, "logit_bias", as_logit_bias(self.logit_bias))
        if not all(value is None or _is_number(value) for value in values.values()):
            return  # JAX rebuilds pytrees with placeholders for leaves
        if isinstance(self.top_k, int):
            object.__setattr__(self, "top_k", min(self.top_k, LARGEST))
        if type(self.bregman) is object:
            return
        if not isinstance(self.bregman, Bregman | None):
            raise wrong_kind("bregman", "Bregman(...) or None", self.bregman)
        filters = self.temperature, self.top_k, self.top_p, self.min_p
        check_filters(*filters, self.bregman, self.draft_temperature)
        check_penalties(**{name: values[name] for name in OF_TEXT})
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

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on which tokens the text has."""
        return not (
            self.repetition_penalty is None
            and self.presence_penalty is None
            and self.frequency_penalty is None
        )

    @property
    def reads_text(self) -> bool:
        """Whether logits depend on the text in any way beyond the model's."""
        return self.has_penalties or self.min_new_tokens is not None

    @property
    def changes_logits(self) -> bool:
        """Whether anything comes before the temperature."""
        return self.reads_text or self.logit_bias is not None

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

        bias = self.logit_bias
        return dataclasses.replace(
            self,
            **{name: rows(name, dtype) for name, dtype in NUMBERS.items()},
            logit_bias=None if bias is None else bias.for_rows(batch),
            bregman=self.bregman and self.bregman.for_rows(batch),
        )

    def of_drafts(self) -> SamplingOptions:
        """The options of the draft's logits, where these are the target's."""
        if self.draft_temperature is None:
            return self
        temperature = self.temperature * self.draft_temperature
        return dataclasses.replace(
            self, temperature=temperature, draft_temperature=None
        )

    def to_probabilities(self, logits: Array) -> Array:
        """The distributions that `logits [B, ..., V]` stand for.

        The logits are those after `penalties.adjusted`, if anything comes before the
        temperature.
        """
        temperature = 0.0 if self.greedy else self.temperature
        return probabilities(
            logits,
            temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.max_top_k,
            self.bregman,
        )

    def of_likeliest(self, few: Array, whole: Array) -> Array:
        """A distribution on the likeliest tokens of a draft, much like the target's.

        Args:
          few: [B, ..., k] their logits, descending.
          whole: [B, ..., V] those of all tokens.

        Returns:
          [B, ..., k].
        """
        if self.bregman is None or self.greedy:
            return self.to_probabilities(few)
        # What is left out counts here, and not only what is kept.
        return nearest_among(few, whole, self.temperature, self.top_k, self.bregman)


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


def check_penalties(
    repetition_penalty: Any,
    presence_penalty: Any,
    frequency_penalty: Any,
    min_new_tokens: Any,
) -> None:
    """Raises ValueError naming the option that is out of range."""

    def is_finite(x: np.ndarray) -> np.ndarray:
        return np.abs(x) <= np.finfo(np.float32).max

    check_option(
        "repetition_penalty",
        repetition_penalty,
        lambda x: (x > 0) & is_finite(x),
        "must be above 0 and finite (1 is none)",
    )
    for name, value in (
        ("presence_penalty", presence_penalty),
        ("frequency_penalty", frequency_penalty),
    ):
        check_option(name, value, is_finite, "must be finite (0 is none)")
    check_option(
        "min_new_tokens",
        min_new_tokens,
        lambda x: (x >= 0) & (x <= LARGEST),
        f"must lie in [0, {LARGEST}]",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | jax.Array | np.ndarray | np.generic)


def _as_option(name: str, value: Any) -> Array | np.ndarray:
    """A number, or several, as an array; TypeError for what is none."""
    is_count = NUMBERS[name] == jnp.int32
    wanted = jnp.integer if is_count else jnp.number
    shown = "an integer" if is_count else "a number"
    error = wrong_kind(name, f"{shown}, or one for each row", value)
    try:
        array = as_array(value)
    except (TypeError, ValueError) as reason:
        raise error from reason
    is_real = not jnp.issubdtype(array.dtype, jnp.complexfloating)
    if not (jnp.issubdtype(array.dtype, wanted) and is_real):
        raise error
    return array
