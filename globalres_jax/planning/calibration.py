"""Measures a pair for a request: one path, and several if they could be better."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.planning.acceptance import Acceptance
from globalres_jax.planning.choose import refine
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.estimates import Estimates
from globalres_jax.planning.probe import ROOM, Part, Probe, Prompts
from globalres_jax.planning.question import Question, of_shape
from globalres_jax.planning.shapes import PLAIN, Shape

#: The shapes whose trees are looked at; others are told from them.
CHAIN, PATHS = Shape(1, 7), Shape(4, 4)
#: What several paths may be worth before they are looked at, see `Acceptance.power`;
#: of real pairs it is about 0.6.
HOPEFUL_POWER = 0.75


class Calibration:
    """What is measured for one question, and the estimates that it gives.

    The `Measures` of `choose.refine`. All parts that have been timed are timed again
    beside a new one, in turns, and the least of each counts.
    """

    def __init__(
        self,
        question: Question,
        probe: Probe,
        configs: Mapping[Shape, SpeculativeConfig],
    ):
        self.question, self.probe, self.configs = question, probe, configs
        self.survival: dict[int, tuple[float, ...]] = {}
        self.trees = 0
        self._parts: dict[tuple[str, int], Part] = {}
        self._seconds: dict[tuple[str, int], float] = {}
        self._look(CHAIN)
        self.measure_call(PLAIN)

    @property
    def acceptance(self) -> Acceptance:
        """Of the drafts that were looked at."""
        steps = self.trees * len(self.probe.keys)
        return Acceptance(self.survival, steps, power=HOPEFUL_POWER)

    @property
    def costs(self) -> Costs:
        """Of the parts that were timed; a level is its share of a tree.

        The root's level costs what a level of one path does.
        """
        target, draft, verify = {}, {}, {}
        root = self._seconds["draft", 1] / CHAIN.length
        for (kind, number), seconds in self._seconds.items():
            if kind == "target":
                target[number] = seconds
            elif number == 1:
                costs = draft if kind == "draft" else verify
                costs[1] = seconds / CHAIN.length
            elif kind == "draft":
                draft[number] = max((seconds - root) / (PATHS.length - 1), root)
            else:
                verify[number] = seconds / PATHS.length
        return Costs(target, draft, verify)

    def measure_call(self, shape: Shape) -> None:
        """Times the target call of a shape."""
        request = self.question.request(self.configs[shape])
        self._parts["target", shape.num_nodes] = self.probe.target_call(request)
        self._time()

    def look_at_paths(self) -> None:
        """Looks at trees of several paths."""
        self._look(PATHS)
        self._time()

    def _look(self, shape: Shape) -> None:
        config = of_shape(self.question.config, shape)
        seen, number = self.probe.look(self.question.request(config)), shape.num_paths
        self.survival[number] = seen.survival
        self.trees = min(self.trees or seen.trees, seen.trees)
        self._parts["target", shape.num_nodes] = seen.target
        self._parts["draft", number] = seen.draft
        self._parts["verify", number] = seen.verify

    def _time(self) -> None:
        seconds = self.probe.seconds(list(self._parts.values()))
        for part, found in zip(self._parts, seconds, strict=True):
            self._seconds[part] = min(found, self._seconds.get(part, found))


def calibrate(
    question: Question,
    probe: Probe,
    configs: Mapping[Shape, SpeculativeConfig],
    known: Estimates | None,
) -> Estimates:
    """Estimates for a question; what was known of costs counts, too."""
    begun = probe.clock()
    found = Calibration(question, probe, configs)
    if known is not None and len(known.costs.draft) > 1:
        found.look_at_paths()
    refine(tuple(configs), found)
    costs = found.costs if known is None else known.costs.least(found.costs)
    return Estimates(
        found.acceptance,
        costs,
        probe.prompts.tokens.shape[1],
        probe.prompts.capacity,
        probe.clock() - begun,
    )


def probe_for(question: Question, known: Estimates | None, clock) -> Probe:
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
