"""From the tensors of a checkpoint to the parameters of a `Decoder`.

Every name and shape is checked before anything is read. Then one array after another
is read, a block of rows at a time, straight into the memory it stays in.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from globalres_jax.base import Params
from globalres_jax.models.decoder import DecoderConfig, parameter_shapes
from globalres_jax.models.description import Description, some
from globalres_jax.models.family import Family
from globalres_jax.models.placement import parameter_sharding

#: The layer that a tensor belongs to, in either scheme.
_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")
_BLOCK = 1 << 22  # elements read at once


class TensorSource(Protocol):
    """An open checkpoint."""

    scheme: str
    path: Path

    def description(self, defaults: Mapping[str, Any]) -> Description: ...

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, start: int, stop: int) -> np.ndarray: ...

    def forget(self) -> None: ...


def check_depth(source: TensorSource, described: Description) -> None:
    """ValueError if a description has layers without tensors.

    Seen before a model is built, which a number of many digits would make endless.
    """
    found = {_LAYER.match(name) for name in source.names()} - {None}
    layers = {match[1] for match in found}
    if described.num_layers > len(layers):
        raise described.error(
            "num_hidden_layers", f"at most {len(layers)}, of which there are tensors"
        )


def settle_head(
    source: TensorSource, family: Family, config: DecoderConfig
) -> tuple[DecoderConfig, dict[tuple, str]]:
    """The head that a file has, whatever its description says of a tied one.

    As transformers has it: one that differs from the embedding is used, one without an
    embedding beside it serves as both.

    Returns:
      (the configuration, for each of its parameters the name of its tensor).
    """
    embedding, head = (
        family.tensor_name((layer, "weight"), source.scheme)
        for layer in ("embedding", "head")
    )
    found = source.names()
    if config.tied and {embedding, head} <= found:
        tied = _same(source, embedding, head)
        config = dataclasses.replace(config, tied=tied)
    names = {
        path: family.tensor_name(path, source.scheme)
        for path, _ in nnx.to_flat_state(parameter_shapes(config))
    }
    if config.tied and embedding not in found and head in found:
        names["embedding", "weight"] = head
    return config, names


def _same(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors hold the same numbers."""
    shape = source.shape(one)
    if not shape or shape != source.shape(other):
        return False
    step = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = start, min(start + step, shape[0])
        if not np.array_equal(source.read(one, *rows), source.read(other, *rows)):
            return False
    return True


def load_parameters(
    source: TensorSource,
    family: Family,
    config: DecoderConfig,
    names: dict[tuple, str],
    dtype,
    mesh,
) -> Params:
    """All parameters, cast to `dtype` (norms stay float32), placed on `mesh`.

    Args:
      source: open checkpoint.
      family: of its model.
      config: as `settle_head` gives it.
      names: likewise.
      dtype: of all but the norms.
      mesh: devices, or None.

    Raises:
      ValueError: a tensor is missing, unknown or misshapen.
    """
    wanted = dict(nnx.to_flat_state(parameter_shapes(config)))
    # Files with a tied head may repeat it.
    head = family.tensor_name(("head", "weight"), source.scheme)
    spare = {head} if config.tied else set()
    shapes = {names[path]: leaf.shape for path, leaf in wanted.items()}
    _check(source, shapes, spare)
    leaves = []
    for path, leaf in wanted.items():
        array = _load(source, family, config, names[path], path, leaf, dtype, mesh)
        leaves.append((path, leaf.replace(array)))
        source.forget()
    return nnx.from_flat_state(leaves)


def _check(
    source: TensorSource, wanted: dict[str, tuple[int, ...]], spare: set[str]
) -> None:
    found = source.names()
    missing = sorted(set(wanted) - found)
    unknown = sorted(found - set(wanted) - spare)
    if missing or unknown:
        raise ValueError(
            f"source: {source.path} lacks tensors {some(missing)} and has unknown "
            f"ones {some(unknown)}"
        )
    for name, shape in wanted.items():
        if source.shape(name) != tuple(shape):
            raise ValueError(
                f"source: {source.path}: tensor {name} has shape {source.shape(name)}, "
                f"the configuration needs {tuple(shape)}"
            )


def _load(source, family, config, name, path, leaf, dtype, mesh) -> jax.Array:
    """One parameter."""
    norm = path[-1] == "scale"
    offset = family.stored_offset(path, source.scheme)
    order = None
    if source.scheme == "gguf" and family.gguf_interleaved:
        order = _row_order(path, leaf.shape[0], config.attention.head_dim)

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        rows, *others = index
        first, last, _ = rows.indices(leaf.shape[0])
        sizes = zip(others, leaf.shape[1:], strict=True)
        shape = (last - first, *(_length(*pair) for pair in sizes))
        out = _aligned(shape, np.float32 if norm else dtype)
        if order is not None:
            out[...] = source.read(name, 0, leaf.shape[0])[order][index]
            return out
        step = max(1, _BLOCK // int(np.prod(leaf.shape[1:], dtype=np.int64)))
        for start in range(first, last, step):
            stop = min(start + step, last)
            block = source.read(name, start, stop)[(slice(None), *others)]
            if offset:
                block = block.astype(np.float32) + offset
            out[start - first : stop - first] = block
        return out

    sharding = parameter_sharding(mesh, path, leaf.shape, config.attention)
    return jax.make_array_from_callback(tuple(leaf.shape), sharding, piece)


def _length(part: slice, size: int) -> int:
    first, last, _ = part.indices(size)
    return last - first


def _row_order(path: tuple, rows: int, head_dim: int) -> np.ndarray | None:
    """For each row of queries and keys its place in a file that pairs neighbours."""
    if "query" not in path and "key" not in path:
        return None
    places = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return places.swapaxes(1, 2).reshape(-1)


def _aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Empty memory that a CPU device can take over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * jnp.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
