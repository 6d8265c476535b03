"""Estimates on disk, one small file for each pair and device, if a folder is given.

A folder that cannot be read or written, or a file that holds something else, is no
error: what is not there is measured.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from globalres_jax.planning.estimates import Estimates, as_json, from_json

VARIABLE = "GLOBALRES_JAX_PLANS"

_FOLDER: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "plans", default=None
)


@contextlib.contextmanager
def kept_in(folder: str | Path | None) -> Iterator[None]:
    """Keeps what is measured inside in a folder; None: as the variable says."""
    token = _FOLDER.set(None if folder is None else str(folder))
    try:
        yield
    finally:
        _FOLDER.reset(token)


def load(name: str) -> Estimates | None:
    """What was kept under a name, None if nothing was."""
    folder = _folder()
    if folder is None:
        return None
    try:
        return from_json(json.loads((folder / f"{name}.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save(name: str, estimates: Estimates) -> None:
    """Keeps estimates under a name, or silently does not."""
    folder = _folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(as_json(estimates), file)
            os.replace(path, folder / f"{name}.json")  # whole or not at all
        except OSError:
            Path(path).unlink(missing_ok=True)


def _folder() -> Path | None:
    wanted = _FOLDER.get() or os.environ.get(VARIABLE, "")
    return Path(wanted) if wanted not in ("", "0") else None
