"""A draft on disk: `config.json` and `model.safetensors` of what is its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from globalres_jax.base import Model, Params
from globalres_jax.models.description import shown, some
from globalres_jax.models.drafts.architecture import parameter_shapes
from globalres_jax.models.drafts.config import (
    DraftConfig,
    draft_shape,
    target_function,
)
from globalres_jax.models.safetensors_folder import CONFIG, WEIGHTS

#: The `model_type` of a folder that holds a draft.
DRAFT = "globalres_jax_draft"

_IDS, _CARD, _TARGET = "ids", "card", "target"
_FIELDS = [f.name for f in dataclasses.fields(DraftConfig) if f.name != _IDS]


class StoredDraft(NamedTuple):
    """What a folder holds.

    Attributes:
      config: shape of the draft.
      params: as `init_draft` gives them, in float32.
      card: what was said of it when it was saved.
    """

    config: DraftConfig
    params: Params
    card: dict


def save_draft(
    folder: str | os.PathLike,
    config: DraftConfig,
    params: Params,
    card: Mapping[str, Any],
    target: Model | None = None,
    dtype=None,
) -> None:
    """Writes a draft, without what it shares with its target.

    Args:
      folder: made if it is not there.
      config: shape of the draft.
      params: as `init_draft` gives them.
      card: what there is to say of it (data, steps, losses), as JSON has it.
      target: the model it drafts for. With it the folder says of which sizes and
        vocabulary a target must be; else only the shapes of tensors do.
      dtype: of the tensors; what each has if None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {"model_type": DRAFT}
    described |= {name: getattr(config, name) for name in _FIELDS}
    described[_TARGET] = None if target is None else describe_target(target)
    described[_CARD] = dict(card)
    text = json.dumps(described, indent=2, allow_nan=False)
    tensors = {_IDS: np.asarray(config.ids, np.int32)}
    for path, leaf in nnx.to_flat_state(params):
        value = leaf[...]
        tensors[_name(path)] = np.asarray(value.astype(dtype or value.dtype))
    (folder / WEIGHTS).write_bytes(serialise(tensors, {"format": "np"}))
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def describe_target(target: Model) -> dict[str, Any]:
    """What a target must have in common with the one that a draft was made for.

    Sizes, and a hash of its tokens' texts: null where there is no tokenizer.
    """
    config = target_function(target).config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "vocabulary": _vocabulary(target),
    }


def _vocabulary(target: Model) -> str | None:
    tokenizer = target.tokenizer
    if tokenizer is None:
        return None
    count = min(tokenizer.vocab_size, target.vocab_size)
    texts = [tokenizer.token_text(token) for token in range(count)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def is_draft(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a draft."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("model_type") == DRAFT


def read_draft(folder: str | os.PathLike, target: Model) -> StoredDraft:
    """Reads a draft that fits a target.

    Raises:
      FileNotFoundError: there is no such folder, or a file of it is missing.
      ValueError: it holds no draft, is broken, or does not fit the target.
    """
    folder = Path(folder)
    described = _described(folder)
    _check_target(folder, described.get(_TARGET), target)
    tensors = _read_tensors(folder)
    if _IDS not in tensors:
        raise ValueError(f"draft: {folder / WEIGHTS} lacks tensors [{_IDS}]")
    options = {name: described[name] for name in _FIELDS if name in described}
    try:
        config = DraftConfig(ids=tensors.pop(_IDS), **options)
        shape = draft_shape(config, target_function(target).config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"draft: {folder}: {error}") from error
    wanted = nnx.to_flat_state(parameter_shapes(shape))
    _check_tensors(folder, {_name(path): leaf.shape for path, leaf in wanted}, tensors)
    params = nnx.from_flat_state(
        (path, leaf.replace(jnp.asarray(tensors[_name(path)], jnp.float32)))
        for path, leaf in wanted
    )
    return StoredDraft(config, params, described.get(_CARD) or {})


def _described(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"draft: no such folder: {folder}")
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"draft: no {CONFIG} in {folder}")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"draft: {path} is no JSON: {error}") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind != DRAFT:
        raise ValueError(
            f"draft: {folder} holds no draft: {CONFIG} has model_type {shown(kind)}, a "
            f"draft's is {DRAFT!r}"
        )
    return found


def _check_target(folder: Path, said: Any, target: Model) -> None:
    """ValueError if a target is not as the folder says that it must be."""
    if not isinstance(said, dict):
        return
    found = describe_target(target)
    for name, what in (("vocab_size", "tokens"), ("hidden_size", "features")):
        if said.get(name) is not None and said[name] != found[name]:
            raise ValueError(
                f"draft: {folder} fits a target of {shown(said[name])} {what} ({name}),"
                f" and this one has {found[name]}"
            )
    both = said.get("vocabulary"), found["vocabulary"]
    if None not in both and both[0] != both[1]:
        raise ValueError(
            f"draft: {folder} was made for a target of another vocabulary: as many "
            "tokens, but other texts"
        )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"draft: no {WEIGHTS} in {folder}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"draft: {path} is unreadable or truncated: {error}"
        ) from error


def _check_tensors(
    folder: Path, wanted: Mapping[str, tuple], found: Mapping[str, np.ndarray]
) -> None:
    """ValueError if a tensor is missing, unknown or misshapen."""
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        raise ValueError(
            f"draft: {folder / WEIGHTS} lacks tensors {some(missing)} and has unknown "
            f"ones {some(unknown)}"
        )
    for name, shape in wanted.items():
        if found[name].shape != tuple(shape):
            raise ValueError(
                f"draft: {folder / WEIGHTS}: tensor {name} has shape "
                f"{found[name].shape}, this target needs {tuple(shape)}"
            )


def _name(path: tuple) -> str:
    return ".".join(map(str, path))
