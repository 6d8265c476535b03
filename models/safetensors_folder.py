"""Folders in Hugging Face's layout: `config.json` and safetensors, whole or sharded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from globalres_jax.models.description import Description

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"

#: Leads of tensor names that stand for `model.` where a text model is part of more.
_LEADS = ("model.language_model.", "language_model.model.")
#: Tensors that are no part of the text model, or follow from the configuration.
_BESIDE = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.")
_BESIDE = (*_BESIDE, "model.multi_modal_projector.")


class SafetensorsFolder:
    """One model folder: its description, and its tensors as a `TensorSource`."""

    scheme = "safetensors"

    def __init__(self, folder: Path):
        """Opens all files of `folder`; ValueError if one is broken or missing."""
        self.path = folder
        self.config = read_json(folder / CONFIG)
        self._slices: dict[str, Any] = {}
        for path in self._files():
            try:
                # The file stays open for as long as its slices are held.
                file = safe_open(path, framework="numpy")
                for name in file.keys():  # noqa: SIM118
                    if not name.startswith(_BESIDE) and "inv_freq" not in name:
                        self._slices[_plain(name)] = file.get_slice(name)
            except (SafetensorError, OSError, ValueError) as error:
                raise ValueError(
                    f"source: {path} is unreadable or truncated: {error}"
                ) from error

    def _files(self) -> list[Path]:
        """The files that hold tensors; FileNotFoundError names what is missing."""
        if (self.path / INDEX).is_file():
            shards = read_json(self.path / INDEX).get("weight_map", {})
            files = [self.path / name for name in sorted(set(shards.values()))]
        else:
            files = [self.path / WEIGHTS]
        missing = [path.name for path in files if not path.is_file()]
        if missing or not files:
            raise FileNotFoundError(
                f"source: no {', '.join(missing) or 'tensors'} in {self.path}"
            )
        return files

    @property
    def architecture(self) -> str | None:
        """What the configuration calls its model; None if it does not say."""
        return (self.config.get("architectures") or [None])[0]

    def description(self) -> Description:
        """The configuration, that of the text model where there are several."""
        options = {**self.config, **self.config.get("text_config", {})}
        return Description(options, str(self.path / CONFIG))

    def names(self) -> set[str]:
        """Names of all tensors of the text model."""
        return set(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._slices[name].get_shape())

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor, in the type they are stored in."""
        rows = self._slices[name][start:stop]
        if rows.dtype.kind not in "fV":
            raise ValueError(
                f"source: {self.path}: tensor {name} has type {rows.dtype}; "
                "supported: float64, float32, float16, bfloat16"
            )
        return rows

    def forget(self) -> None:
        """The library maps files and lets the system page them out."""


def _plain(name: str) -> str:
    """A tensor's name as it is in a file of the text model alone."""
    for lead in _LEADS:
        if name.startswith(lead):
            return "model." + name.removeprefix(lead)
    return name.removeprefix("language_model.")


def read_json(path: Path) -> dict:
    """The object in a JSON file; errors name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"source: no {path.name} in {path.parent}")
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"source: {path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"source: {path} is no JSON object")
    return found
