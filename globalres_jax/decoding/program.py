"""A request as the compiled program takes it: checked, planned, sized and placed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Drafter, Model, Params
from globalres_jax.decoding.buckets import Sizes, bucket_sizes, pad_prompts
from globalres_jax.decoding.config import AUTO, SpeculativeConfig
from globalres_jax.decoding.generation import Generation
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.request import (
    check_alternatives,
    check_context,
    check_drafter,
    check_features,
    check_model,
    check_options,
    check_prompts,
    check_room,
    end_tokens,
    row_keys,
)
from globalres_jax.decoding.stop_strings import StopStrings, as_stop_strings
from globalres_jax.drafters import NoDrafts, as_drafter
from globalres_jax.planning.automatic import Plan, choose_plan, observe
from globalres_jax.planning.question import Question
from globalres_jax.sharding import mesh_of, place_rows
from globalres_jax.validation import as_array, is_concrete, wrong_kind


class Arguments(NamedTuple):
    """What the compiled functions take, in this order; for `B` rows.

    Attributes:
      target: the model whose distribution the texts have.
      drafter: where drafts come from.
      keys: [B] random key of each row.
      prompts: [B, P] tokens, padded on the right.
      lengths: [B] tokens of each prompt.
      budget: [B] most tokens that each row may emit.
      ends: [B, E] tokens that end a row, -1 for none.
      options: sampling options, arrays [B].
    """

    target: Model
    drafter: Drafter
    keys: Array
    prompts: Array
    lengths: Array
    budget: Array
    ends: Array
    options: SamplingOptions


class Program(NamedTuple):
    """What is run for a request.

    Attributes:
      arrays: arguments of the compiled function.
      static: what fixes it.
      room: most new tokens of a row; the program's texts may be wider.
      plan: where the tree was chosen, by what.
      stop: strings that end rows, None for none: the host then has to look on.
    """

    arrays: Arguments
    static: dict
    room: int
    plan: Plan | None
    stop: StopStrings | None

    def finish(self, result: Generation) -> Generation:
        """What was asked for of a result; a plan learns from its metrics."""
        if self.plan is not None:
            observe(self.plan, result.metrics)
        return result.first_columns(self.room)


class _Asked(NamedTuple):
    """A request that has been checked; rows as they came."""

    config: SpeculativeConfig
    drafter: Drafter
    options: SamplingOptions
    prompts: Array
    lengths: Array
    budget: Array
    room: int
    mesh: Any
    plan: Plan | None


def as_program(
    key: Array,
    target: Model,
    draft: Model | Drafter | None,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    eos_id: int | Sequence[int] | Array | None = None,
    options: SamplingOptions | None = None,
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    include_stop: bool = False,
) -> Program:
    """Arguments of `generate`, checked, brought to sizes that come back, and placed."""
    asked = _ask(
        target, draft, prompts, prompt_lengths, config, max_new_tokens, options
    )
    prompts, lengths, config = asked.prompts, asked.lengths, asked.config
    strings = as_stop_strings(
        stop,
        include_stop,
        target.tokenizer,
        prompts,
        lengths,
        asked.options.min_new_tokens,
    )
    batch, width = prompts.shape
    if is_concrete(prompts, lengths):
        sizes = bucket_sizes(config, width, asked.room)
        prompts = pad_prompts(prompts, sizes.width)
        lengths = jax.device_put(np.asarray(lengths, np.int32))
    else:
        sizes = Sizes(width, asked.room, config.capacity(width, asked.room))
    key = row_keys(key, batch)
    ends = end_tokens(target.eos_id if eos_id is None else eos_id, batch)
    rows = place_rows(
        asked.mesh,
        (
            key,
            prompts.astype(jnp.int32),
            lengths.astype(jnp.int32),
            asked.budget,
            ends,
            asked.options.for_rows(batch),
        ),
    )
    static = {
        "config": config.program(),
        "room": sizes.room,
        "capacity": sizes.capacity,
        "mesh": asked.mesh,
        "platform": _platform_of(target.params),
    }
    arrays = Arguments(target, asked.drafter, *rows)
    return Program(arrays, static, asked.room, asked.plan, strings)


def plan(
    target: Model,
    draft: Model | Drafter,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    options: SamplingOptions | None = None,
) -> Plan:
    """What `generate` with `tree="auto"` would choose for these prompts.

    `plan(...).config` is the given config with a tree and a rule. `generate` takes it
    under `jit`, too, and for the same key it writes the same text again. The plan as a
    string says in a line what was expected. For the arguments see `generate`; the
    config's own tree does not count.

    Raises:
      ValueError: as `generate` does, and where there is nothing to measure: no draft,
        or arguments that `jit` traces.
    """
    config = SpeculativeConfig(tree=AUTO) if config is None else config
    if config.tree != AUTO:
        config = dataclasses.replace(config, tree=AUTO)
    if draft is None:
        raise ValueError("draft: None drafts nothing, so there is nothing to plan")
    found = _ask(
        target, draft, prompts, prompt_lengths, config, max_new_tokens, options
    ).plan
    if found is None:
        raise ValueError("prompts: no rows, so there is nothing to plan with")
    return found


def _ask(
    target, draft, prompts, prompt_lengths, config, max_new_tokens, options
) -> _Asked:
    """Checks a request, and chooses its tree if it is to be chosen."""
    config = SpeculativeConfig() if config is None else config
    if not isinstance(config, SpeculativeConfig):
        raise wrong_kind("config", "a SpeculativeConfig", config)
    options = config.sampling if options is None else options
    if not isinstance(options, SamplingOptions):
        raise wrong_kind("options", "SamplingOptions", options)
    options = _drafted_by(config, options)
    check_model("target", target)
    check_alternatives(config.top_log_probabilities, target.vocab_size)
    if draft is None or (config.tree != AUTO and config.token_tree.depth == 0):
        draft, config = NoDrafts(), config.plain()
    drafter = as_drafter(draft)
    check_drafter(drafter)
    check_features(target, drafter)
    if config.tree != AUTO:
        drafter.check(config.token_tree, target.vocab_size)
    prompts = as_array(prompts, "prompts")
    lengths = as_array(prompt_lengths, "prompt_lengths")
    batch = check_prompts(prompts, lengths, target.vocab_size)
    budget, room = check_room(max_new_tokens, batch)
    check_context(lengths, budget, target.context_length)
    check_options(options, budget, target.vocab_size)
    mesh, chosen = mesh_of(target.params), None
    if config.tree == AUTO and batch == 0:
        drafter, config = NoDrafts(), config.plain()
    elif config.tree == AUTO:
        _check_measurable(target, drafter, options, prompts, lengths)
        chosen = choose_plan(
            Question(
                config,
                target,
                drafter,
                place_rows(mesh, options.for_rows(batch)),
                prompts,
                lengths,
                room,
                _platform_of(target.params),
                lambda rows: place_rows(mesh, rows),
            )
        )
        config, options = chosen.config, _drafted_by(chosen.config, options)
        drafter = drafter if config.token_tree.depth else NoDrafts()
    rows = prompts, lengths, budget
    return _Asked(config, drafter, options, *rows, room, mesh, chosen)


def _drafted_by(config: SpeculativeConfig, options: SamplingOptions) -> SamplingOptions:
    """Options with the config's draft temperature, if they have none."""
    if options.draft_temperature is not None or config.draft_temperature is None:
        return options
    return dataclasses.replace(options, draft_temperature=config.draft_temperature)


def _check_measurable(target, drafter, options, prompts, lengths) -> None:
    """ValueError where nothing can be run before the program."""
    if jax.process_count() > 1:
        raise ValueError(
            f'tree: "auto" measures in one process, and there are '
            f"{jax.process_count()}, which must agree; give a tree"
        )
    everything = target, drafter, options, prompts, lengths
    if not is_concrete(*jax.tree.leaves(everything)):
        raise ValueError(
            'tree: "auto" has nothing to calibrate on where `jit` or `vmap` traces '
            "models, options or prompts; call `globalres_jax.plan` outside and pass "
            "its `.config`, or give a tree such as `tree.chain(7)`"
        )


def _platform_of(params: Params) -> str | None:
    """Where parameters lie; None for those that `jit` traces."""
    leaves = jax.tree.leaves(params)
    if not leaves or not all(isinstance(x, jax.Array) for x in leaves):
        return None
    if not is_concrete(*leaves):
        return None
    return next(iter(leaves[0].devices())).platform
