"""Folders in Hugging Face's layout: `config.json` and safetensors, whole or sharded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from globalres_jax.models.description import Description, shown, some

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"

#: Leads of tensor names that stand for `model.` where a text model is part of more.
_LEADS = ("model.language_model.", "language_model.model.")
#: Tensors of a model of text and images that are no part of its text model.
_BESIDE = ("vision_tower.", "multi_modal_projector.")
_BESIDE = (*_BESIDE, *(f"model.{lead}" for lead in _BESIDE))
#: A buffer that older files hold and that follows from the configuration.
_BUFFER = ".rotary_emb.inv_freq"

#: What a configuration need not say of the folder as a whole.
_UNSAID = dict.fromkeys(
    ("architectures", "model_type", "text_config", "quantization_config")
)

#: Types of tensors that can be read.
SUPPORTED_TYPES = ("F64", "F32", "F16", "BF16")


class SafetensorsFolder:
    """One model folder: its description, and its tensors as a `TensorSource`."""

    scheme = "safetensors"

    def __init__(self, folder: Path):
        """Opens all files of `folder`; ValueError if one is broken or missing."""
        self.path = folder
        self._described = Description(
            read_json(folder / CONFIG), str(folder / CONFIG), defaults=_UNSAID
        )
        self._slices: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        for path in self._files():
            try:
                # The file stays open for as long as its slices are held.
                file = safe_open(path, framework="numpy")
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError, ValueError) as error:
                raise ValueError(
                    f"source: {path} is unreadable or truncated: {error}"
                ) from error
            for name, part in slices.items():
                self._add(name, part)
        self._check_types()

    def _add(self, stored: str, part: Any) -> None:
        """Takes in a tensor, unless it is known to be no part of the text model."""
        if stored.endswith(_BUFFER) or (self.has_images and stored.startswith(_BESIDE)):
            return
        name = _plain(stored)
        if name in self._stored:
            pair = f"{self._stored[name]} and {stored}"
            raise ValueError(
                f"source: {self.path}: tensor {name} is stored twice, as {pair}"
            )
        self._slices[name], self._stored[name] = part, stored

    def _check_types(self) -> None:
        """ValueError if a tensor is of a type that cannot be read."""
        kinds = {name: part.get_dtype() for name, part in self._slices.items()}
        odd = sorted(n for n, kind in kinds.items() if kind not in SUPPORTED_TYPES)
        how = self._described.get("quantization_config")
        if how is None and self.has_images:
            text = self._described.within("text_config")
            how = text.options.get("quantization_config")
        if not odd and how is None:
            return
        method = how.get("quant_method") if isinstance(how, dict) else how
        method = "" if how is None else f"; quantization_config says {shown(method)}"
        what = "is quantised"
        if odd:
            found = ", ".join(sorted({kinds[name] for name in odd}))
            what = f"has tensors {some(odd)} of type {found}"
        raise ValueError(
            f"source: {self.path} {what}, which is not supported{method}; supported: "
            f"{', '.join(SUPPORTED_TYPES)}"
        )

    def _files(self) -> list[Path]:
        """The files that hold tensors; FileNotFoundError names what is missing."""
        # A whole file is taken before parts, as transformers does.
        names = [WEIGHTS]
        if not (self.path / WEIGHTS).is_file() and (self.path / INDEX).is_file():
            names = _shards(self.path / INDEX)
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing or not names:
            raise FileNotFoundError(
                f"source: no {', '.join(missing) or 'tensors'} in {self.path}"
            )
        return [self.path / name for name in names]

    @property
    def architecture(self) -> str | None:
        """What the configuration calls its model; None if it does not say."""
        named = self._described.get("architectures")
        if named is None:
            return None
        if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
            raise self._described.error("architectures", "a list of names")
        return named[0] if named else None

    @property
    def model_type(self) -> str | None:
        """What the configuration calls its own kind; None if it does not say."""
        kind = self._described.get("model_type")
        if kind is not None and not isinstance(kind, str):
            raise self._described.error("model_type", "a name")
        return kind

    @property
    def has_images(self) -> bool:
        """Whether the text model is a part of one of text and images."""
        if self.model_type is not None:
            return self.model_type == "gemma3"
        return self.architecture == "Gemma3ForConditionalGeneration"

    def description(self, defaults: Mapping[str, Any]) -> Description:
        """The configuration of the text model, over the defaults of its family."""
        if not self.has_images:
            return dataclasses.replace(self._described, defaults=defaults)
        text, whole = self._described.within("text_config"), self._described.options
        options = {**text.options, "tie_word_embeddings": True}
        # What is said of the whole alone.
        for name in ("tie_word_embeddings", "eos_token_id"):
            if name in whole:
                options[name] = whole[name]
        return dataclasses.replace(text, options=options, defaults=defaults)

    def names(self) -> set[str]:
        """Names of all tensors of the text model."""
        return set(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._slices[name].get_shape())

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor, in the type they are stored in."""
        return self._slices[name][start:stop]

    def forget(self) -> None:
        """The library maps files and lets the system page them out."""


def _plain(name: str) -> str:
    """A tensor's name as it is in a file of the text model alone."""
    for lead in _LEADS:
        if name.startswith(lead):
            return "model." + name.removeprefix(lead)
    return name.removeprefix("language_model.")


def _shards(index: Path) -> list[str]:
    """The files that an index names; ValueError for one outside its folder."""
    places = read_json(index).get("weight_map")
    named = places.values() if isinstance(places, dict) else [None]
    if not all(isinstance(name, str) for name in named):
        raise ValueError(
            f"source: {index}: weight_map must map names of tensors to files; got "
            f"{shown(places)}"
        )
    for name in set(named):
        # Its parts are what a path of any system may mean by the name.
        path = PureWindowsPath(name)
        if path.anchor or ".." in path.parts:
            raise ValueError(
                f"source: {index} names {shown(name)}, which is outside its folder"
            )
    return sorted(set(named))


def read_json(path: Path) -> dict:
    """The object in a JSON file; errors name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"source: no {path.name} in {path.parent}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source: {path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"source: {path} is no JSON object")
    return found
