"""Measures a pair for a request: one path, and several if they could be better.

How one path is best drawn is told from the trees that were drawn anyhow.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.planning.acceptance import Acceptance
from globalres_jax.planning.choose import MARGIN, refine, tokens_per_second
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.draws import Draws, best_draws, open_draws
from globalres_jax.planning.estimates import Estimates
from globalres_jax.planning.probe import ROOM, Part, Probe, Prompts, Seen
from globalres_jax.planning.question import Question, candidates, is_allowed, of_shape
from globalres_jax.planning.reweighting import first_level
from globalres_jax.planning.shapes import PLAIN, Shape

#: The shapes whose trees are looked at; others are told from them.
CHAIN, PATHS = Shape(1, 7), Shape(4, 4)
#: What several paths may be worth before they are looked at, see `Acceptance.power`;
#: of real pairs it is about 0.6.
HOPEFUL_POWER = 0.75
#: How much more another law must accept after the root for its trees to be looked at.
WORTH_A_LOOK = 0.02
#: Times differ by chance: no level takes less than this share of the one measured.
LEAST_OF = 0.5


class Calibration:
    """What is measured for one question, and the estimates that it gives.

    The `Measures` of `choose.refine`. All parts that have been timed are timed again
    beside a new one, in turns, and the least of each counts.

    Attributes:
      question: the request.
      probe: what measures.
      draws: how drafts are drawn, as far as it was compared.
    """

    def __init__(self, question: Question, probe: Probe, usual: Draws):
        self.question, self.probe = question, probe
        self.survival: dict[int, tuple[float, ...]] = {}
        self.trees = 0
        self._parts: dict[tuple[str, int], Part] = {}
        self._seconds: dict[tuple[str, int], float] = {}
        ways = open_draws(
            question.config, question.options, question.target.vocab_size, usual
        )
        # Fewer tokens can be told from more, and any temperature from this one.
        self._looked = Draws(max(draws.top_k for draws in ways))
        self.draws = self._looked
        is_open = len(ways) > 1 or question.config.law is None
        seen = self._look(CHAIN, ways if is_open else ())
        top_ks = sorted({draws.top_k for draws in ways})
        for top_k in top_ks if seen.redrawn is not None and len(top_ks) > 1 else ():
            config = of_shape(question.config, CHAIN, Draws(top_k))
            part = self.probe.level_of_drafts(question.request(config))
            self._parts["draw", top_k] = part
        self._after_root = seen.after_root
        self.measure_call(PLAIN)
        if seen.redrawn is not None:
            self._redraw(ways, seen.redrawn)

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
            elif kind == "draft" and number == 1:
                draft[1] = max(root + self._more_to_draw(self.draws), LEAST_OF * root)
            elif kind == "draft":
                draft[number] = max((seconds - root) / (PATHS.length - 1), root)
            elif kind == "verify":
                verify[number] = seconds / (CHAIN if number == 1 else PATHS).length
        return Costs(target, draft, verify)

    def measure_call(self, shape: Shape) -> None:
        """Times the target call of a shape."""
        config = of_shape(self.question.config, shape, self.draws)
        request = self.question.request(config)
        self._parts["target", shape.num_nodes] = self.probe.target_call(request)
        self._time()

    def look_at_paths(self) -> None:
        """Looks at trees of several paths, by two laws if the other could be better."""
        self._look(PATHS)
        self._time()
        law = self._other_law()
        if law is None:
            return
        rate = tokens_per_second(PATHS, self.acceptance, self.costs)
        before = self.draws, dict(self.survival), dict(self._parts), dict(self._seconds)
        self.draws = self.draws._replace(law=law)
        for kind in ("draft", "verify"):
            self._seconds.pop((kind, PATHS.num_paths))
        self._look(PATHS)
        self._time()
        if tokens_per_second(PATHS, self.acceptance, self.costs) < MARGIN * rate:
            self.draws, self.survival, self._parts, self._seconds = before

    def _look(self, shape: Shape, others: Sequence[Draws] = ()) -> Seen:
        config = of_shape(self.question.config, shape, self.draws)
        seen = self.probe.look(self.question.request(config), others)
        number = shape.num_paths
        self.survival[number] = seen.survival
        self.trees = min(self.trees or seen.trees, seen.trees)
        self._parts["target", shape.num_nodes] = seen.target
        self._parts["draft", number] = seen.draft
        self._parts["verify", number] = seen.verify
        return seen

    def _time(self) -> None:
        seconds = self.probe.seconds(list(self._parts.values()))
        for part, found in zip(self._parts, seconds, strict=True):
            self._seconds[part] = min(found, self._seconds.get(part, found))

    def _redraw(self, ways: Sequence[Draws], added: np.ndarray) -> None:
        """Takes the best way to draw one path, by what each level adds [A, n, D]."""
        costs = self.costs
        seconds = [
            costs.step_seconds(CHAIN) + CHAIN.length * self._more_to_draw(draws)
            for draws in ways
        ]
        best = best_draws(added.sum(axis=2, dtype=np.float64), seconds)
        self.draws = ways[best]
        mean = added[best].mean(axis=0, dtype=np.float64)
        # Of another rule than a block's, in proportion.
        looked = added[ways.index(self._looked)].mean(axis=0, dtype=np.float64)
        share = np.divide(mean, looked, out=np.ones_like(mean), where=looked > 0)
        survival = np.minimum(share * np.asarray(self.survival[1]), 1)
        self.survival[1] = tuple(np.minimum.accumulate(survival).tolist())

    def _more_to_draw(self, draws: Draws) -> float:
        """Seconds of a level beyond one by the draws that were looked at."""
        times = {k: t for (kind, k), t in self._seconds.items() if kind == "draw"}

        def least(top_k: int) -> float:
            # Fewer tokens never take longer: what looks so is chance.
            return min((t for k, t in times.items() if k >= top_k), default=0.0)

        return least(draws.top_k) - least(self._looked.top_k)

    def _other_law(self) -> str | None:
        """The law that is best after the root, if that is not i.i.d. drafts."""
        if self.question.config.law is not None or self._after_root is None:
            return None
        number, held = PATHS.num_paths, self._after_root[0].shape[1]
        if held < number:
            return None
        best = {}
        for law in LAWS:
            draws = self.draws._replace(law=law)
            if not is_allowed(self.question.config, PATHS, draws):
                continue
            best[law] = float(
                first_level(
                    *self._after_root,
                    draws.temperature,
                    name=law,
                    num_drafts=number,
                    top_k=min(max(draws.top_k_for(number), number), held),
                )
            )
        law = max(best, key=best.get, default=Draws().law)
        iid = best.get(Draws().law, 0.0)
        return law if best.get(law, 0.0) > iid + WORTH_A_LOOK else None


def calibrate(question: Question, probe: Probe, known: Estimates | None) -> Estimates:
    """Estimates for a question; what was known of costs counts, too."""
    begun = probe.clock()
    usual = Draws() if known is None else known.draws._replace(law=Draws().law)
    found = Calibration(question, probe, usual)
    if known is not None and len(known.costs.draft) > 1:
        found.look_at_paths()
    refine(tuple(candidates(question, found.draws)), found)
    costs = found.costs
    if known is not None and known.draws == found.draws:
        costs = known.costs.least(costs)
    return Estimates(
        found.acceptance,
        costs,
        probe.prompts.tokens.shape[1],
        probe.prompts.capacity,
        found.draws,
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
