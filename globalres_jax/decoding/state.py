"""What a decoding step needs: the state before it, and what stays from step to step."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, Drafter, Model, State
from globalres_jax.cache import prefill, prefill_with_features
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.metrics import Metrics, empty_metrics
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.penalties import TextCounts, count_text


class StepState(NamedTuple):
    """What one step needs of the steps before it.

    Attributes:
      keys: [B] random key of each row.
      steps: [B] number of steps that each row has taken.
      budget: [B] tokens that each row may still emit; 0 where it has ended.
      failed: [B] bool, whether it has ended because the target's logits were broken.
      stopped: [B] bool, whether it has ended with an end token.
      cache: the target's; all of the text but its last token.
      draft: the drafter's state.
      metrics: counts.
      counts: of the text, with its last token; None where no option asks for them.
    """

    keys: Array
    steps: Array
    budget: Array
    failed: Array
    stopped: Array
    cache: Cache
    draft: State
    metrics: Metrics
    counts: TextCounts | None = None

    def keep_running(self, running: Array) -> StepState:
        """The same, of which only rows that are `running [B]` emit more."""
        return self._replace(budget=_of_running(self.budget, running))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What stays the same from step to step.

    Attributes:
      target: the model whose distribution the text has.
      drafter: where drafts come from.
      options: sampling options, arrays [B].
      ends: [B, E] tokens that end a row, -1 for none.
      config: all that fixes the program.
    """

    target: Model
    drafter: Drafter
    options: SamplingOptions
    ends: Array
    config: SpeculativeConfig = dataclasses.field(metadata={"static": True})


def first_state(
    request: Request,
    keys: Array,
    prompts: Array,
    lengths: Array,
    budget: Array,
    capacity: int,
) -> StepState:
    """The state before the first step: target and drafter have read the prompts.

    Args:
      request: what is asked for.
      keys: [B] random key of each row.
      prompts: [B, P] tokens, padded on the right.
      lengths: [B] tokens of each prompt.
      budget: [B] most tokens that each row may emit.
      capacity: slots of the caches.
    """
    batch, vocab_size = len(prompts), request.target.vocab_size
    models = request.target, request.drafter
    cache, draft = read_prompts(*models, prompts, lengths, capacity)
    return StepState(
        keys=keys,
        steps=jnp.zeros(batch, jnp.int32),
        budget=budget,
        failed=jnp.zeros(batch, bool),
        stopped=jnp.zeros(batch, bool),
        cache=cache,
        draft=draft,
        metrics=empty_metrics(batch, request.config.token_tree.depth),
        counts=count_text(request.options, prompts, lengths, vocab_size),
    )


@jax.jit
def _of_running(budget: Array, running: Array) -> Array:
    return jnp.where(running, budget, 0)


def reads_features(drafter: Drafter) -> bool:
    """Whether a drafter reads the target's features, see `base.Drafter`."""
    return getattr(drafter, "reads_features", False)


def read_prompts(
    target: Model, drafter: Drafter, prompts: Array, lengths: Array, capacity: int
) -> tuple[Cache, State]:
    """The target's cache and the drafter's state; for the arrays see `first_state`."""
    rows = prompts, lengths, capacity
    if not reads_features(drafter):
        return prefill(target, *rows), drafter.start(*rows)
    cache, features = prefill_with_features(target, *rows)
    return cache, drafter.start(*rows, features)
