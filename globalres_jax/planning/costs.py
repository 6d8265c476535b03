"""What a step costs: measured seconds of its parts, added up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from globalres_jax.planning.shapes import Shape

#: Times of calls go up and down with the tiles of a product: a size that was not
#: measured may take this share of what its neighbours say.
LEAST_SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a step, for the whole batch.

    Attributes:
      target: of a target call, by number of tokens; of 1 at least.
      draft: of a level of drafting, by number of paths; of 1 at least.
      verify: of a level of verification, likewise.
    """

    target: Mapping[int, float]
    draft: Mapping[int, float]
    verify: Mapping[int, float]

    def step_seconds(self, shape: Shape) -> float:
        """Of a step: draft level by level, one target call, verification.

        The root's level is one path wide. Sizes that were not measured lie on lines
        between those that were.
        """
        return between(self.target, shape.num_nodes) + self._beside_target(shape)

    def least_seconds(self, shape: Shape) -> float:
        """Of a step, if the call of a size that was not measured is a cheap one."""
        nodes = shape.num_nodes
        share = 1.0 if nodes in self.target else LEAST_SHARE
        call = max(share * between(self.target, nodes), min(self.target.values()))
        return call + self._beside_target(shape)

    def least(self, other: Costs) -> Costs:
        """The smaller of each: other work on a machine only adds to what is measured.

        What one of the two does not know comes from the other.
        """

        def smaller(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
            known = a.keys() | b.keys()
            return {k: min(a.get(k, math.inf), b.get(k, math.inf)) for k in known}

        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Costs(*(smaller(*pair) for pair in pairs))

    def _beside_target(self, shape: Shape) -> float:
        number, length = shape
        if length == 0:
            return self.verify[1]
        below = (length - 1) * between(self.draft, number)
        return self.draft[1] + below + length * between(self.verify, number)


def between(points: Mapping[int, float], x: int) -> float:
    """The value at `x` on lines through `points`; beyond them the last line goes on.

    A single point is a constant, and no line goes down beyond the last point.
    """
    if x in points:
        return points[x]
    places = sorted(points)
    if len(places) == 1:
        return points[places[0]]
    right = next((i for i, place in enumerate(places) if place > x), len(places) - 1)
    low, high = places[max(right - 1, 0)], places[max(right, 1)]
    slope = (points[high] - points[low]) / (high - low)
    if x > places[-1]:
        low, slope = places[-1], max(slope, 0.0)
    return points[low] + slope * (x - low)
