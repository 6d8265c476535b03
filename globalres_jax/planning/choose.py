"""The shape that writes most tokens a second, by rates and costs alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from globalres_jax.planning.acceptance import Acceptance
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.shapes import PLAIN, Shape

#: How much faster than plain decoding drafts must look to be worth their risk.
MARGIN = 1.05
#: How much faster a shape must look to be compiled where another one is in use.
WORTH_COMPILING = 1.05
#: Most target calls that one choice measures, each compiled for it.
MOST_MEASURED = 3


def tokens_per_second(shape: Shape, acceptance: Acceptance, costs: Costs) -> float:
    """Expected tokens a second of each row: (1 + accepted) / seconds of a step."""
    return (1 + acceptance.accepted(shape)) / costs.step_seconds(shape)


def best_shape(
    shapes: Sequence[Shape], acceptance: Acceptance, costs: Costs
) -> tuple[Shape, float]:
    """The fastest shape, and its expected tokens a second.

    Plain decoding unless drafts are `MARGIN` times faster; of equal ones the first.
    Nothing is run: with `acceptance.independent(rate)` it sizes a tree for simulated
    acceptance.
    """

    def rate(shape: Shape) -> float:
        found = tokens_per_second(shape, acceptance, costs)
        return found if shape == PLAIN else found / MARGIN

    best = max((PLAIN, *shapes), key=rate)
    return best, tokens_per_second(best, acceptance, costs)


class Measures(Protocol):
    """What is known so far, and ways to know more.

    Attributes:
      acceptance: of drafts.
      costs: of the parts of a step; the target call of one token among them.
    """

    @property
    def acceptance(self) -> Acceptance: ...

    @property
    def costs(self) -> Costs: ...

    def measure_call(self, shape: Shape) -> None:
        """Measures a shape's target call."""
        ...

    def look_at_paths(self) -> None:
        """Measures drafts of several paths: what they cost, and how many count."""
        ...


def refine(shapes: Sequence[Shape], measures: Measures) -> None:
    """Measures what could still decide which of the shapes is best, and no more.

    The most hopeful shape gets its target call measured; then, if it has several paths
    and their drafts have not been looked at, they are; until nothing that is not known
    could be better than what is.
    """
    calls = MOST_MEASURED
    while True:
        acceptance, costs = measures.acceptance, measures.costs
        if calls == 0:
            shapes = [shape for shape in shapes if shape.num_nodes in costs.target]
        hopeful = hopeful_shape(shapes, acceptance, costs)
        if hopeful.num_nodes not in costs.target:
            measures.measure_call(hopeful)
            calls -= 1
        elif hopeful.num_paths > 1 and len(costs.draft) == 1:
            measures.look_at_paths()
        else:
            return


def known_shapes(shapes: Iterable[Shape], costs: Costs) -> list[Shape]:
    """Those whose parts have been measured."""
    return [
        shape
        for shape in shapes
        if shape.num_nodes in costs.target
        and (shape.num_paths == 1 or len(costs.draft) > 1)
    ]


def hopeful_shape(
    shapes: Sequence[Shape], acceptance: Acceptance, costs: Costs
) -> Shape:
    """The fastest shape if each target call that was not measured is a cheap one."""

    def rate(shape: Shape) -> float:
        found = (1 + acceptance.accepted(shape)) / costs.least_seconds(shape)
        return found if shape == PLAIN else found / MARGIN

    return max((PLAIN, *shapes), key=rate)


def stay_or_go(
    best: Shape, used: Iterable[Shape], acceptance: Acceptance, costs: Costs
) -> Shape:
    """The best shape, or one of those in `used` that is within `WORTH_COMPILING` of it.

    What has been used is compiled.
    """

    def rate(shape: Shape) -> float:
        return tokens_per_second(shape, acceptance, costs)

    at_hand = max(used, key=rate, default=best)
    return best if rate(best) > WORTH_COMPILING * rate(at_hand) else at_hand
