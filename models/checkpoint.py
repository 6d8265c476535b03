"""A model folder: `config.json`, `model.safetensors`, and a tokenizer nearby.

Tensors are named by their path in the module (`blocks.0.attention.query.kernel`).
Loading checks every name and shape before anything is built: nothing half-loaded
goes on silently.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from globalres_jax.models.safetensors_folder import CONFIG, read_json
from globalres_jax.models.transformer import Transformer, TransformerConfig
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from globalres_jax.base import Params

WEIGHTS = "model.safetensors"


def save_checkpoint(folder: Path, config: TransformerConfig, params: Params, dtype):
    """Writes `config.json` and `model.safetensors` (cast to `dtype`) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"architecture": "transformer", **dataclasses.asdict(config)}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    tensors = {
        ".".join(map(str, path)): jnp.asarray(leaf[...], dtype)
        for path, leaf in nnx.to_flat_state(params)
    }
    save_file(tensors, folder / WEIGHTS)


def load_config(folder: Path) -> TransformerConfig:
    """Reads `config.json`; raises ValueError naming the file if it is not ours."""
    path = folder / CONFIG
    described = read_json(path)
    architecture = described.pop("architecture", None)
    if architecture != "transformer":
        raise ValueError(
            f"source: {path} has architecture {architecture!r}; "
            "supported: 'transformer'"
        )
    try:
        return TransformerConfig(**described)
    except TypeError as error:
        raise ValueError(f"source: {path} does not fit: {error}") from error


def load_params(folder: Path, config: TransformerConfig, dtype=jnp.float32) -> Params:
    """Reads `model.safetensors` into the parameters of `config`, cast to `dtype`.

    Raises:
      FileNotFoundError: there is no weights file.
      ValueError: it cannot be read, or a tensor is missing, unknown or misshapen.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"source: no {WEIGHTS} in {folder}")
    shapes = nnx.state(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    wanted = {".".join(map(str, k)): (k, v) for k, v in nnx.to_flat_state(shapes)}
    try:
        with safe_open(path, framework="flax") as file:
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"source: {path} is unreadable or truncated: {error}"
        ) from error
    if names != set(wanted):
        missing, unknown = sorted(set(wanted) - names), sorted(names - set(wanted))
        raise ValueError(
            f"source: {path} lacks tensors {missing} and has unknown ones {unknown}"
        )
    leaves = []
    for name, (key, leaf) in wanted.items():
        tensor = tensors[name]
        if tensor.shape != leaf.shape:
            raise ValueError(
                f"source: {path}: tensor {name} has shape {tensor.shape}, "
                f"the config needs {leaf.shape}"
            )
        leaves.append((key, leaf.replace(jnp.asarray(tensor, dtype))))
    return nnx.from_flat_state(leaves)


def num_bytes(params: Params) -> int:
    """Bytes that the parameters take in memory."""
    return int(
        sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
    )
