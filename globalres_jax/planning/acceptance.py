"""How many drafts a shape is expected to have accepted.

Known are survival curves: s_K(d), the chance that a step accepts d tokens or more when
K paths are drafted. Of one path and of one larger number they are measured; between
them, and beyond, K paths count as K^g independent ones,

    s_K(d) = 1 - (1 - s_1(d))^(K^g),

with g at each depth from what was measured, else as the estimate has it. What decoding
counts afterwards moves the odds of all acceptances by one factor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from globalres_jax.planning.shapes import Shape

#: Chances lie this far from 0 and 1, so that odds can move them.
_EDGE = 1e-4
#: Most of what may move odds, in logarithms.
_MOST_SHIFT = 8.0
#: Steps of the past that count beside new ones.
_MEMORY = 512


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """Survival curves of drafts, and what has been seen since they were measured.

    Attributes:
      survival: by number of paths, of 1 and at most one other: s(1), s(2), ...
      steps: how many steps the estimate stands on.
      shift: logarithm of the factor on the odds of acceptance at each depth.
      power: g where only one path was measured; of independent acceptances it is 1.
    """

    survival: Mapping[int, tuple[float, ...]]
    steps: float = 0.0
    shift: float = 0.0
    power: float = 1.0

    def curve(self, shape: Shape) -> list[float]:
        """s(1), ..., s(L) of a shape, with the shift."""
        chances, alive = [], 1.0
        for chance in _conditional(self._unshifted(shape)):
            odds = math.log(chance / (1 - chance)) + self.shift
            alive *= 1 / (1 + math.exp(-odds))
            chances.append(alive)
        return chances

    def accepted(self, shape: Shape) -> float:
        """Expected number of accepted drafts of a step."""
        return math.fsum(self.curve(shape))

    def observed(self, shape: Shape, steps: int, accepted: int) -> Acceptance:
        """The estimate after `steps` of a shape that accepted so many drafts in all."""
        if steps < 1 or shape.length == 0:
            return self
        known = min(self.steps, _MEMORY)
        found = self._shift_that_gives(shape, accepted / steps)
        shift = (known * self.shift + steps * found) / (known + steps)
        return dataclasses.replace(self, steps=known + steps, shift=shift)

    def _shift_that_gives(self, shape: Shape, accepted: float) -> float:
        low, high = -_MOST_SHIFT, _MOST_SHIFT
        for _ in range(40):
            middle = (low + high) / 2
            if dataclasses.replace(self, shift=middle).accepted(shape) < accepted:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def _unshifted(self, shape: Shape) -> list[float]:
        number, length = shape
        single = _extended(self.survival[1], length)
        if number == 1:
            return single
        measured = self.survival.get(number, ())
        other = max(self.survival)
        powers = [
            _power(single[depth], found, other)
            for depth, found in enumerate(self.survival[other][:length])
            if other > 1
        ]
        curve, above = [], 1.0
        for depth in range(length):
            if depth < len(measured):
                chance = measured[depth]
            else:
                power = powers[min(depth, len(powers) - 1)] if powers else self.power
                chance = 1 - (1 - single[depth]) ** (number**power)
            above = min(above, chance)
            curve.append(above)
        return curve


def independent(rate: float) -> Acceptance:
    """Drafts that are accepted with one fixed chance each: simulated acceptance."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: must lie in [0, 1], got {rate}")
    return Acceptance({1: (rate,)})


def _conditional(curve: Sequence[float]) -> list[float]:
    """Chances of each depth given the one above."""
    above, chances = 1.0, []
    for alive in curve:
        chance = alive / above if above > 0 else 0.0
        chances.append(min(max(chance, _EDGE), 1 - _EDGE))
        above = alive
    return chances


def _extended(curve: Sequence[float], length: int) -> list[float]:
    """A curve of any length, that goes on as it ended."""
    curve = list(curve[:length])
    last = _conditional(curve)[-1] if curve else 0.0
    while len(curve) < length:
        curve.append(curve[-1] * last)
    return curve


def _power(single: float, several: float, number: int) -> float:
    """g for which `number^g` independent paths survive as several did, in [0, 1]."""
    single = min(max(single, _EDGE), 1 - _EDGE)
    several = min(max(several, single), 1 - _EDGE)
    effective = math.log1p(-several) / math.log1p(-single)
    return min(max(math.log(effective) / math.log(number), 0.0), 1.0)
