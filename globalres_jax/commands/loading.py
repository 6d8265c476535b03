"""Loads a pair for the command line, and says what that took."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path

import jax

from globalres_jax import models
from globalres_jax.base import Model
from globalres_jax.drafters.prompt_lookup import PromptLookup

_GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True)
class Loading:
    """What loading took.

    Attributes:
      seconds: wall time.
      parameter_bytes: of all parameters, shared ones once.
      peak_bytes: most memory of the process while it loaded, less what it had before.
      process_bytes: most memory of the process so far.
    """

    seconds: float
    parameter_bytes: int
    peak_bytes: int
    process_bytes: int

    def __str__(self) -> str:
        share = self.peak_bytes / max(self.parameter_bytes, 1)
        return (
            f"loaded in {self.seconds:.1f} s: parameters "
            f"{self.parameter_bytes / _GIGABYTE:.3f} GB, peak memory while loading "
            f"{self.peak_bytes / _GIGABYTE:.3f} GB above the start ({share:.2f} times "
            f"the parameters), {self.process_bytes / _GIGABYTE:.3f} GB in all"
        )


def load_measured(
    target: str, draft: str, dtype
) -> tuple[Model, Model | PromptLookup, Loading]:
    """Loads the pair, and measures."""
    before, start = _resident(), time.perf_counter()
    pair = models.load_pair(target, draft, dtype)
    jax.block_until_ready([getattr(model, "params", ()) for model in pair])
    seconds = time.perf_counter() - start
    leaves = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pair)}
    process = _peak()
    peak = max(process - before, 0)
    return *pair, Loading(seconds, sum(leaves.values()), peak, process)


def _peak() -> int:
    """Most bytes that the process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident() -> int:
    """Bytes that the process has now, or has had where the system does not say."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return _peak()
    return int(status.read_text().split()[1]) * resource.getpagesize()
