"""All that is known of a pair on a device, as one value that can be kept."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.planning.acceptance import Acceptance
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.draws import Draws
from globalres_jax.planning.shapes import PLAIN, Shape

#: Probing may take this share of the time that decoding takes.
PROBING_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What plans are made from.

    Attributes:
      acceptance: of drafts.
      costs: of the parts of a step.
      width: of the prompts that were probed; others are cut or filled up to it.
      capacity: of the caches there.
      draws: how drafts are drawn, where a config leaves it open.
      probe_seconds: what looking at trees took.
      decoded_seconds: what decoding has taken since, as far as is known.
    """

    acceptance: Acceptance
    costs: Costs
    width: int
    capacity: int
    draws: Draws = Draws()
    probe_seconds: float = 0.0
    decoded_seconds: float = 0.0

    @property
    def is_due(self) -> bool:
        """Whether enough was decoded since trees were looked at to look again."""
        return self.decoded_seconds * PROBING_SHARE > self.probe_seconds

    def observed(
        self, shape: Shape, steps: int, accepted: int, calls: int
    ) -> Estimates:
        """The estimates after a request.

        Args:
          shape: that it was decoded with.
          steps: of all rows together.
          accepted: drafts, likewise.
          calls: of the target, as many as the longest row needed.
        """
        acceptance = self.acceptance
        if shape != PLAIN:
            acceptance = acceptance.observed(shape, steps, accepted)
        seconds = self.decoded_seconds + calls * self.costs.step_seconds(shape)
        return dataclasses.replace(self, acceptance=acceptance, decoded_seconds=seconds)


def as_json(estimates: Estimates) -> dict[str, Any]:
    """Plain numbers, lists and dicts."""
    return dataclasses.asdict(estimates)


def from_json(found: Any) -> Estimates:
    """The inverse; ValueError, TypeError or KeyError for anything else."""

    def numbers(mapping: dict) -> dict[int, float]:
        values = {int(key): float(value) for key, value in mapping.items()}
        if 1 not in values or not all(0 < x < math.inf for x in values.values()):
            raise ValueError(f"not costs: {mapping}")
        return values

    acceptance, costs = found["acceptance"], found["costs"]
    curves = {int(k): tuple(map(float, v)) for k, v in acceptance["survival"].items()}
    if not curves.get(1) or not all(0 <= s <= 1 for c in curves.values() for s in c):
        raise ValueError(f"not survival curves: {curves}")
    others = [float(acceptance[k]) for k in ("steps", "shift", "power")]
    seconds = [float(found[k]) for k in ("probe_seconds", "decoded_seconds")]
    if not all(map(math.isfinite, (*others, *seconds))):
        raise ValueError("not finite")
    top_k, temperature, law = found["draws"]
    if law not in LAWS or top_k < 1 or not 0 < temperature < math.inf:
        raise ValueError(f"not a way to draw: {found['draws']}")
    return Estimates(
        Acceptance(curves, *others),
        Costs(*(numbers(costs[name]) for name in ("target", "draft", "verify"))),
        int(found["width"]),
        int(found["capacity"]),
        Draws(int(top_k), float(temperature), law),
        *seconds,
    )
