"""A request that has no tree yet, and the configs that it may become."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.state import Request
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.draft_laws import IID
from globalres_jax.planning.draws import Draws
from globalres_jax.planning.shapes import CANDIDATES, PLAIN, Shape
from globalres_jax.tree import chain


class Question(NamedTuple):
    """A request that has no tree yet.

    Attributes:
      config: with `tree="auto"`.
      target: the model.
      drafter: where drafts come from.
      options: for each row [B].
      prompts: [B, P].
      lengths: [B].
      room: most new tokens of a row.
      platform: where the target lies.
      place: brings arrays [B, ...] to where rows lie.
    """

    config: SpeculativeConfig
    target: Model
    drafter: Drafter
    options: SamplingOptions
    prompts: Array
    lengths: Array
    room: int
    platform: str | None
    place: Callable[[Any], Any] = lambda rows: rows

    def request(self, config: SpeculativeConfig) -> Request:
        """What a step of a candidate is asked for."""
        batch = len(self.lengths)
        ends = self.place(jnp.full((batch, 1), -1, jnp.int32))
        options = self.options
        if config.draft_temperature is not None and options.draft_temperature is None:
            rows = jnp.full(batch, config.draft_temperature, jnp.float32)
            options = dataclasses.replace(options, draft_temperature=self.place(rows))
        parts = self.target, self.drafter, options, ends
        return Request(*parts, config.program())


def candidates(
    question: Question, draws: Draws | None = None
) -> dict[Shape, SpeculativeConfig]:
    """The configs of all shapes that law, rule, drafter and cache allow.

    Args:
      question: the request.
      draws: how drafts are drawn, where its config does not say.

    Raises:
      ValueError: as `generate` does, if not even plain decoding is.
    """
    config, width = question.config, question.prompts.shape[1]
    vocab_size = question.target.vocab_size
    question.drafter.check(chain(1), vocab_size)
    plain = config.plain()
    plain.capacity(width, question.room)
    found = {PLAIN: plain}
    for shape in CANDIDATES[1:]:
        made = _allowed(config, shape, draws or Draws())
        if made is None:
            continue
        try:
            question.drafter.check(made.token_tree, vocab_size)
            made.capacity(width, question.room)
        except ValueError:
            continue
        found[shape] = made
    return found


@functools.lru_cache(maxsize=512)
def _allowed(
    config: SpeculativeConfig, shape: Shape, draws: Draws
) -> SpeculativeConfig | None:
    """`of_shape`, None where rule and law do not go with it; checks take their time."""
    try:
        return of_shape(config, shape, draws)
    except (TypeError, ValueError):
        return None


def is_allowed(config: SpeculativeConfig, shape: Shape, draws: Draws) -> bool:
    """Whether rule and law go with a shape."""
    return _allowed(config, shape, draws) is not None


def of_shape(
    config: SpeculativeConfig, shape: Shape, draws: Draws | None = None
) -> SpeculativeConfig:
    """The config with a shape, and with the draws that it leaves open."""
    if shape == PLAIN:
        return config.plain()
    draws, changes = draws or Draws(), {}
    if config.draft_top_k is None:
        changes["draft_top_k"] = draws.top_k_for(shape.num_paths)
    if config.draft_temperature is None and draws.temperature != 1:
        changes["draft_temperature"] = draws.temperature
    if config.law is None and shape.num_paths > 1 and draws.law != "iid":
        # One draft of a node is the same by all laws.
        changes["law"] = (LAWS[draws.law], *[IID] * (shape.length - 1))
    return dataclasses.replace(config, tree=shape.tree, **changes)
