"""Writes a model as a folder in Hugging Face's layout, which `load` reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from safetensors.flax import save as serialise

from globalres_jax.base import Params
from globalres_jax.models.family import Family
from globalres_jax.models.safetensors_folder import CONFIG, WEIGHTS


def save(
    folder: Path, family: Family, options: Mapping[str, Any], params: Params, dtype=None
) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`.

    Args:
      folder: made if it is not there.
      family: whose names the tensors get.
      options: the configuration, in the words of a `config.json`, without the
        architecture's name.
      params: of a `Decoder` of this configuration.
      dtype: that everything is cast to; what each parameter has if None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {"architectures": [family.architectures[0]], **options}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    tensors = {}
    for path, leaf in nnx.to_flat_state(params):
        value = leaf[...]
        stored = value - family.stored_offset(path, "safetensors")
        name = family.tensor_name(path, "safetensors")
        tensors[name] = jnp.asarray(stored, dtype or value.dtype)
    # The library's own way to write a file makes one that only its owner may read.
    (folder / WEIGHTS).write_bytes(serialise(tensors, {"format": "pt"}))
