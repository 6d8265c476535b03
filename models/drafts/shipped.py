"""Drafts that ship with the package, by their names."""

from __future__ import annotations

import os
from pathlib import Path

from globalres_jax.models.drafts.folder import is_draft

_SHIPPED = Path(__file__).parent.parent / "embedded"


def shipped_drafts() -> dict[str, Path]:
    """The folder of each draft that ships with the package, by its name."""
    folders = sorted(_SHIPPED.iterdir()) if _SHIPPED.is_dir() else []
    return {folder.name: folder for folder in folders if is_draft(folder)}


def find_draft(source: str | os.PathLike) -> Path | None:
    """The folder of a draft by its name or path; None for what is no draft."""
    folder = shipped_drafts().get(str(source), Path(source))
    return folder if is_draft(folder) else None
