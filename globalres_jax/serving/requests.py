"""What is asked for, one prompt at a time, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from globalres_jax.base import Array
from globalres_jax.commands.seeds import key_of_seed
from globalres_jax.decoding.generation import Generation
from globalres_jax.decoding.metrics import plain_numbers
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.validation import as_integer, wrong_kind


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """One prompt for `generate_many`, and how it is to be continued.

    Attributes:
      prompt: its text, or its tokens [P], integers.
      max_new_tokens: length cap.
      seed: what is drawn from; `sample` tells apart several texts of one seed. The text
        is that of row `sample` of `generate` with `jax.random.key(seed)`.
      sample: which text of its seed, from 0 on.
      key: a random key in place of `seed` and `sample`; as row of `generate` has it.
      options: sampling options, plain numbers; the config's if None.
      eos_id: token that ends the text, or several; `()` for none. The target's own if
        None.
      stop: a string that ends the text where it says it, or several.
      include_stop: whether the text keeps the string that it ends with.
      name: anything; it comes back with the result.

    Raises:
      TypeError, ValueError: an argument of another kind, or a seed beyond 64 bits.
    """

    prompt: str | Sequence[int] | np.ndarray
    max_new_tokens: int = 64
    seed: int = 0
    sample: int = 0
    key: Array | None = None
    options: SamplingOptions | None = None
    eos_id: int | Sequence[int] | None = None
    stop: str | Sequence[str] | None = None
    include_stop: bool = False
    name: Any = None

    def __post_init__(self):
        if self.options is not None and not isinstance(self.options, SamplingOptions):
            raise wrong_kind("options", "SamplingOptions", self.options)
        if type(self.seed) is not int:
            as_integer("seed", self.seed, 0)
        key_of_seed(int(self.seed), "seed")
        as_integer("sample", self.sample, 0)
        if not isinstance(self.key, Array | np.ndarray | None):
            raise wrong_kind("key", "a key, such as jax.random.key(0)", self.key)

    @property
    def row_key(self) -> Array:
        """The key of its row."""
        if self.key is not None:
            return self.key
        return jax.random.fold_in(
            key_of_seed(int(self.seed), "seed"), np.uint32(self.sample)
        )


class Completion(NamedTuple):
    """What came of one request.

    Attributes:
      index: of the request, in the order in which they came.
      request: itself.
      prompt_tokens: [P] what its prompt came to; empty where it was refused.
      result: one row (B = 1) on the host with T its length; None where it was refused.
      text: what the tokens add to the prompt; None without a tokenizer.
      error: why it was refused; None if it was not.
    """

    index: int
    request: GenerationRequest
    prompt_tokens: np.ndarray
    result: Generation | None
    text: str | None
    error: str | None = None

    @property
    def tokens(self) -> np.ndarray:
        """[T] int32 of the text; none where it was refused."""
        empty = np.zeros(0, np.int32)
        return empty if self.result is None else self.result.tokens[0]

    @property
    def finish_reason(self) -> str:
        """As `Generation.finish_reasons` has it, or "error" where it was refused."""
        return "error" if self.result is None else self.result.finish_reasons[0]

    @property
    def metrics(self) -> dict[str, Any]:
        """Counts and rates by vLLM's names, plain numbers; none where it was refused.

        See `Metrics`; what was not computed is None.
        """
        return {} if self.result is None else plain_numbers(self.result.metrics)
