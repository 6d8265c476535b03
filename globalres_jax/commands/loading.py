"""Loads a pair for the command line, and says what that took."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from globalres_jax import models
from globalres_jax.base import Drafter, Model
from globalres_jax.models.placement import default_dtype, first_device

_GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True)
class Loading:
    """What loading took.

    Attributes:
      seconds: wall time.
      numbers: type of the weights, and the kind of device that holds them.
      parameter_bytes: of all parameters as they lie in memory, shared ones once.
      start_bytes: memory of the process when it began; None where the system does
        not say.
      peak_bytes: most memory of the process while it loaded; None where that is not
        known, since only the most so far is and it was before.
    """

    seconds: float
    numbers: str
    parameter_bytes: int
    start_bytes: int | None
    peak_bytes: int | None

    def __str__(self) -> str:
        said = (
            f"loaded in {self.seconds:.1f} s, {self.numbers}: parameters "
            f"{_size(self.parameter_bytes)}"
        )
        if self.peak_bytes is not None:
            said += (
                f", peak memory of the process while loading {_size(self.peak_bytes)}"
            )
            if self.start_bytes is not None:
                said += f" ({_size(self.start_bytes)} when it began)"
        return said


def load_measured(
    target: str, draft: str, dtype=None
) -> tuple[Model, Model | Drafter, Loading]:
    """Loads the pair, and measures; for `dtype` see `models.load`."""
    dtype = default_dtype() if dtype is None else jnp.dtype(dtype)
    start_bytes, peak_before = _status("VmRSS"), _peak()
    start = time.perf_counter()
    pair = models.load_pair(target, draft, dtype)
    jax.block_until_ready(jax.tree.leaves(pair))
    seconds = time.perf_counter() - start
    peak = _peak()
    rose = peak is not None and peak_before is not None and peak > peak_before
    leaves = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pair)}
    loading = Loading(
        seconds=seconds,
        numbers=f"{dtype} on {first_device().device_kind}",
        parameter_bytes=sum(leaves.values()),
        start_bytes=start_bytes,
        peak_bytes=peak if rose else None,
    )
    return *pair, loading


def _size(count: int) -> str:
    return f"{count / _GIGABYTE:.3f} GB"


def _peak() -> int | None:
    """Most bytes that the process has had."""
    if sys.platform == "darwin":
        import resource  # not on every system

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux' `ru_maxrss` may be that of the process that started this one.
    return _status("VmHWM")


def _status(word: str) -> int | None:
    """A figure of Linux' account of this process in bytes, None on other systems."""
    path = Path("/proc/self/status")
    found = path.is_file() and re.search(
        rf"{word}:\s*(\d+) kB", path.read_text("utf-8")
    )
    return 1024 * int(found[1]) if found else None
