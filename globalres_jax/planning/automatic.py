"""`tree="auto"`: measures, chooses, remembers, and learns from what was decoded.

Every candidate is lossless, so that the law of the text never depends on the choice.
Which tokens a given key draws does: give a plan's own config to write them again.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.metrics import Metrics
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.step import Request
from globalres_jax.planning import store
from globalres_jax.planning.acceptance import Acceptance
from globalres_jax.planning.choose import (
    best_shape,
    known_shapes,
    refine,
    stay_or_go,
    tokens_per_second,
)
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.estimates import Estimates
from globalres_jax.planning.identity import name_of
from globalres_jax.planning.probe import ROOM, Probe, Prompts
from globalres_jax.planning.shapes import CANDIDATES, PLAIN, Shape
from globalres_jax.tree_verifiers import Block, LayerResolution

#: The shapes whose trees are looked at; others are told from them.
CHAIN, PATHS = Shape(1, 7), Shape(4, 4)
#: What several paths may be worth before they are looked at, see `Acceptance.power`;
#: of real pairs it is about 0.6.
HOPEFUL_POWER = 0.75
#: Requests whose metrics wait to be read; older ones are forgotten.
MOST_WAITING = 16


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
        parts = self.target, self.drafter, self.options, ends
        return Request(*parts, config.program())


class Plan(NamedTuple):
    """A choice, and what it was made from.

    Attributes:
      config: as given, with a tree and a rule.
      shape: of the tree.
      estimates: of the pair on its device.
      name: under which they are remembered.
      seconds: what measuring took this time, compilation included.
    """

    config: SpeculativeConfig
    shape: Shape
    estimates: Estimates
    name: str
    seconds: float

    def __str__(self) -> str:
        known = self.estimates.acceptance, self.estimates.costs
        rate = tokens_per_second(self.shape, *known)
        plain = tokens_per_second(PLAIN, *known)
        if self.shape == PLAIN:
            said = f"plain decoding, {plain:.0f} tokens/s expected; no drafts pay"
        else:
            rule = type(self.config.verifier).__name__
            accepted = known[0].accepted(self.shape)
            said = (
                f"{self.shape} by {rule}, {rate:.0f} tokens/s expected where plain "
                f"decoding writes {plain:.0f}; {accepted:.2f} drafts accepted a step"
            )
        return f"tree: {said}; measured in {self.seconds:.1f} s"


class _Memory:
    """What this process knows: estimates, shapes in use, and metrics not yet read."""

    def __init__(self):
        self.lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """As at the start."""
        self.estimates: dict[str, Estimates] = {}
        self.used: dict[str, frozenset[Shape]] = {}
        self.waiting: deque[tuple[str, Shape, Metrics]] = deque(maxlen=MOST_WAITING)


_MEMORY = _Memory()
forget = _MEMORY.forget


def choose_plan(
    question: Question, clock: Callable[[], float] = time.perf_counter
) -> Plan:
    """The shape and rule that pay for a request, measured where nothing is known yet.

    Args:
      question: the request, its arrays concrete.
      clock: seconds.

    Raises:
      ValueError: no shape is allowed, not even plain decoding.
    """
    begun = clock()
    configs = candidates(question)
    name = name_of(*question[:4])
    with _MEMORY.lock:
        learn()
        known = _MEMORY.estimates.get(name) or store.load(name)
        probe = _probe(question, known, clock)
        if known is None or known.is_due:
            known = _calibrate(question, probe, configs, known)

        shapes = known_shapes(configs, known.costs)
        best = best_shape(shapes, known.acceptance, known.costs)[0]
        used = _MEMORY.used.get(name, frozenset())
        shape = stay_or_go(best, used & configs.keys(), known.acceptance, known.costs)
        _MEMORY.used[name] = used | {shape}
        _remember(name, known)
    return Plan(configs[shape], shape, known, name, clock() - begun)


def candidates(question: Question) -> dict[Shape, SpeculativeConfig]:
    """The configs of all shapes that law, rule, drafter and cache allow.

    Raises:
      ValueError: as `generate` does, if not even plain decoding is.
    """
    config, width = question.config, question.prompts.shape[1]
    vocab_size = question.target.vocab_size
    question.drafter.check(CHAIN.tree, vocab_size)
    plain = config.plain()
    plain.capacity(width, question.room)
    found = {PLAIN: plain}
    for shape in CANDIDATES[1:]:
        try:
            made = of_shape(config, shape)
            question.drafter.check(made.token_tree, vocab_size)
            made.capacity(width, question.room)
        except (TypeError, ValueError):
            continue
        found[shape] = made
    return found


def of_shape(config: SpeculativeConfig, shape: Shape) -> SpeculativeConfig:
    """The config with a shape, and a rule for it if none was asked for.

    One path is verified by `Block`, several by `LayerResolution`.
    """
    if shape == PLAIN:
        return config.plain()
    rule = config.verifier
    if rule is None:
        rule = Block() if shape.num_paths == 1 else LayerResolution()
    return dataclasses.replace(config, tree=shape.tree, verifier=rule)


def observe(plan: Plan, metrics: Metrics) -> None:
    """Notes what a request counted. It is read when it has been computed."""
    _MEMORY.waiting.append((plan.name, plan.shape, metrics))


def learn(wait: bool = False) -> None:
    """Reads the metrics that are there; with `wait`, all that were noted."""
    with _MEMORY.lock:
        for _ in range(len(_MEMORY.waiting)):
            name, shape, metrics = _MEMORY.waiting.popleft()
            steps = metrics.num_spec_steps
            if not wait and not steps.is_ready():
                _MEMORY.waiting.append((name, shape, metrics))
                continue
            accepted = np.asarray(metrics.num_accepted_draft_tokens).sum()
            steps = np.asarray(steps)
            if name in _MEMORY.estimates:
                known = _MEMORY.estimates[name].observed(
                    shape, int(steps.sum()), int(accepted), int(steps.max(initial=0))
                )
                _remember(name, known)


def _remember(name: str, known: Estimates) -> None:
    if _MEMORY.estimates.get(name) != known:
        _MEMORY.estimates[name] = known
        store.save(name, known)


def _probe(question: Question, known: Estimates | None, clock) -> Probe:
    """For the question's prompts, as wide as those that were probed before."""
    prompts, lengths = np.asarray(question.prompts), np.asarray(question.lengths)
    width = prompts.shape[1] if known is None else known.width
    capacity = width + question.room + ROOM if known is None else known.capacity
    rows = [
        # The last tokens of those that are too long.
        np.resize(row[max(0, length - width) : length], width)
        for row, length in zip(prompts, lengths, strict=True)
    ]
    tokens, lengths = question.place(
        (
            jax.device_put(np.stack(rows).astype(np.int32)),
            jax.device_put(np.minimum(lengths, width).astype(np.int32)),
        )
    )
    return Probe(Prompts(tokens, lengths, capacity), question.platform, clock)


def _calibrate(
    question: Question, probe: Probe, configs: dict, known: Estimates | None
) -> Estimates:
    """Measures one path, and several if they could be better; what is known, again."""
    begun = probe.clock()
    chain = probe.look(question.request(of_shape(question.config, CHAIN)))
    plain = probe.target_call(question.request(configs[PLAIN]))
    trees = chain.trees * len(probe.keys)
    acceptance = Acceptance({1: chain.survival}, trees, power=HOPEFUL_POWER)
    call, target, draft, verify = probe.seconds(
        [plain, chain.target, chain.draft, chain.verify]
    )
    costs = Costs(
        {1: call, CHAIN.num_nodes: target},
        {1: draft / CHAIN.length},
        {1: verify / CHAIN.length},
    )

    def measure(shape: Shape) -> float:
        part = probe.target_call(question.request(configs[shape]))
        return probe.seconds([part])[0]

    def look(acceptance: Acceptance, costs: Costs) -> tuple[Acceptance, Costs]:
        return _several_paths(question, probe, acceptance, costs)

    if known is not None:
        if len(known.costs.draft) > 1:
            acceptance, costs = look(acceptance, costs)
        costs = known.costs.least(costs)
    acceptance, costs = refine(tuple(configs), acceptance, costs, measure, look)
    return Estimates(
        acceptance,
        costs,
        probe.prompts.tokens.shape[1],
        probe.prompts.capacity,
        probe.clock() - begun,
    )


def _several_paths(
    question: Question, probe: Probe, acceptance: Acceptance, costs: Costs
) -> tuple[Acceptance, Costs]:
    """Both with what trees of several paths say."""
    number, length = PATHS
    paths = probe.look(question.request(of_shape(question.config, PATHS)))
    target, draft, verify = probe.seconds([paths.target, paths.draft, paths.verify])
    below = max((draft - costs.draft[1]) / (length - 1), costs.draft[1])
    survival = {**acceptance.survival, number: paths.survival}
    return dataclasses.replace(acceptance, survival=survival), Costs(
        {**costs.target, PATHS.num_nodes: target},
        {**costs.draft, number: below},
        {**costs.verify, number: verify / length},
    )
