"""`tree="auto"`: measures, chooses, remembers, and learns from what was decoded.

Every candidate is lossless, so that the law of the text never depends on the choice.
Which tokens a given key draws does: give a plan's own config to write them again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.metrics import Metrics
from globalres_jax.planning import store
from globalres_jax.planning.calibration import calibrate, probe_for
from globalres_jax.planning.choose import (
    best_shape,
    known_shapes,
    stay_or_go,
    tokens_per_second,
)
from globalres_jax.planning.draws import Draws
from globalres_jax.planning.estimates import Estimates
from globalres_jax.planning.identity import name_of
from globalres_jax.planning.question import Question, candidates
from globalres_jax.planning.shapes import PLAIN, Shape

#: Requests whose metrics wait to be read; older ones are forgotten.
MOST_WAITING = 16


class Plan(NamedTuple):
    """A choice, and what it was made from.

    Attributes:
      config: as given, with a tree, and a law, number of tokens and temperature for
        drafts where it named none.
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
                f"{self.shape} by {rule}, {self._drawn()}, {rate:.0f} tokens/s "
                f"expected where plain decoding writes {plain:.0f}; {accepted:.2f} "
                "drafts accepted a step"
            )
        return f"tree: {said}; measured in {self.seconds:.1f} s"

    def _drawn(self) -> str:
        """How drafts are drawn, as the config has it."""
        config, law = self.config, self.config.law_of_level(0)
        several = self.shape.num_paths > 1
        kind = f"{getattr(law, '__name__', 'other')} " if several else ""
        at = config.draft_temperature
        warmth = "" if at in (None, 1) else f", draft temperature x {at:g}"
        return f"{kind}drafts from {config.draft_top_k} tokens{warmth}"


class _Memory:
    """What this process knows: estimates, shapes in use, and metrics not yet read."""

    def __init__(self):
        self.lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """As at the start."""
        self.estimates: dict[str, Estimates] = {}
        self.used: dict[tuple[str, Draws], frozenset[Shape]] = {}
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
    name = name_of(*question[:4])
    candidates(question)  # raises what it raises before anything is measured
    with _MEMORY.lock:
        learn()
        known = _MEMORY.estimates.get(name) or store.load(name)
        if known is None or known.is_due:
            probe = probe_for(question, known, clock)
            known = calibrate(question, probe, known)

        configs = candidates(question, known.draws)
        shapes = known_shapes(configs, known.costs)
        best = best_shape(shapes, known.acceptance, known.costs)[0]
        used = _MEMORY.used.get((name, known.draws), frozenset())
        shape = stay_or_go(best, used & configs.keys(), known.acceptance, known.costs)
        _MEMORY.used[name, known.draws] = used | {shape}
        _remember(name, known)
    return Plan(configs[shape], shape, known, name, clock() - begun)


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
