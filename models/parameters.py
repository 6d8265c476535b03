"""From the tensors of a checkpoint to the parameters of a `Decoder`.

Every name and shape is checked before anything is read. Then one array after another
is read, a block of rows at a time, straight into the memory it stays in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from globalres_jax.base import Params
from globalres_jax.models.decoder import DecoderConfig, parameter_shapes
from globalres_jax.models.description import Description
from globalres_jax.models.family import Family
from globalres_jax.models.placement import parameter_sharding

_BLOCK = 1 << 22  # elements read at once


class TensorSource(Protocol):
    """An open checkpoint."""

    scheme: str
    path: Path
    architecture: str | None

    def description(self) -> Description: ...

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, start: int, stop: int) -> np.ndarray: ...

    def forget(self) -> None: ...


def load_parameters(
    source: TensorSource, family: Family, config: DecoderConfig, dtype, mesh
) -> Params:
    """All parameters, cast to `dtype` (norms stay float32), placed on `mesh`.

    Raises:
      ValueError: a tensor is missing, unknown, misshapen or of an unsupported type.
    """
    wanted = dict(nnx.to_flat_state(parameter_shapes(config)))
    names = {path: family.tensor_name(path, source.scheme) for path in wanted}
    _check(source, {names[path]: leaf.shape for path, leaf in wanted.items()})
    leaves = []
    for path, leaf in wanted.items():
        array = _load(source, family, config, names[path], path, leaf, dtype, mesh)
        leaves.append((path, leaf.replace(array)))
        source.forget()
    return nnx.from_flat_state(leaves)


def _check(source: TensorSource, wanted: dict[str, tuple[int, ...]]) -> None:
    found = source.names()
    missing, unknown = sorted(set(wanted) - found), sorted(found - set(wanted))
    # Files with a tied head may repeat it.
    unknown = [name for name in unknown if name not in ("lm_head.weight",)]
    if missing or unknown:
        raise ValueError(
            f"source: {source.path} lacks tensors {_some(missing)} and has unknown "
            f"ones {_some(unknown)}"
        )
    for name, shape in wanted.items():
        if source.shape(name) != tuple(shape):
            raise ValueError(
                f"source: {source.path}: tensor {name} has shape {source.shape(name)}, "
                f"the configuration needs {tuple(shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"[{', '.join(names[:5])}]{more}"


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
