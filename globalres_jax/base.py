"""Array aliases and the contracts that the rest of the library is written against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Params = Any  # any pytree of arrays
Cache = Any  # any pytree with an integer leaf `length` of shape [B]; see cache.py

#: Marks a draft slot that holds no token (a path that no longer matches the text).
NO_TOKEN = -1


class ModelFn(Protocol):
    """A language model as a pure function.

    `tokens [B, L]` are appended to the cache at slots `cache.length ...
    cache.length + L - 1`; `positions [B, L]` place them in the sequence (siblings
    in a token tree share a position); `mask [B, L, S]` says which of the `S` cache
    slots each token may attend to. Returns logits `[B, L, V]` (row `l` predicts
    the token after `tokens[:, l]`) and the cache with `length` advanced by `L`.
    """

    def __call__(
        self, params: Params, tokens: Array, positions: Array, cache: Cache, mask: Array
    ) -> tuple[Array, Cache]: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A model as `generate` takes it: a pure function, its parameters, its cache.

    A pytree whose only children are `params`, so it passes through `jax.jit`.

    Attributes:
      apply: the `ModelFn`.
      params: pytree of arrays.
      init_cache: `(batch, length) -> cache` with room for `length` tokens a row.
      vocab_size: number of tokens the logits cover.
      tokenizer: object with `encode(text)` and `decode(ids)`, or None.
      eos_id: end-of-text token, or several, or None.
    """

    params: Params
    apply: ModelFn = dataclasses.field(metadata={"static": True})
    init_cache: Callable[[int, int], Cache] = dataclasses.field(
        metadata={"static": True}
    )
    vocab_size: int = dataclasses.field(metadata={"static": True})
    tokenizer: Any = dataclasses.field(default=None, metadata={"static": True})
    eos_id: int | tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )


@dataclasses.dataclass(frozen=True)
class NewCache:
    """`function.init_cache`, equal for equal functions.

    A bound method equals only that of the same object, and a model loaded twice would
    be compiled twice.
    """

    function: Any

    def __call__(self, batch: int, length: int) -> Cache:
        return self.function.init_cache(batch, length)


class Decision(NamedTuple):
    """The conditional law of the emitted token, given the drafts.

    Attributes:
      accept: [n] probability of emitting draft j.
      residual: [V] sub-distribution of the token emitted when no draft is accepted;
        `sum(accept) + sum(residual) = 1`.
    """

    accept: Array
    residual: Array


class Verifier(Protocol):
    """A single-step verification rule: a conditional distribution pi(y | drafts).

    `prepare` does what does not depend on the drafted tokens (for the optimal rule,
    the transport solve), so that a token tree is planned in one vmapped call;
    `resolve` turns a plan and drafts into a `Decision`; `decide` is both.
    """

    def prepare(self, p: Array, law: Any) -> Any: ...

    def resolve(
        self, plan: Any, p: Array, law: Any, draft_tokens: Array
    ) -> Decision: ...

    def decide(self, p: Array, law: Any, draft_tokens: Array) -> Decision: ...
