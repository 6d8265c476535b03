"""Where arrays lie on a mesh: tensor parallel over `model`, data parallel over `data`.

Attention heads, the inside of an MLP and the vocabulary are split over the axis
`model`, rows of a batch over `data`. What does not divide evenly is replicated, and an
axis that the mesh lacks is not split over. XLA adds the communication.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from globalres_jax.base import Array
from globalres_jax.validation import is_concrete

DATA, MODEL = "data", "model"

#: Dimension of a weight [out, in] that is split, by the name of its layer.
_SPLIT = {
    **dict.fromkeys(("embedding", "head", "query", "key", "value", "gate", "up"), 0),
    **dict.fromkeys(("out", "down"), 1),
}


def make_mesh(data: int = 1, model: int | None = None) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
      data: number of parts that a batch is split into.
      model: number of parts that the weights are split into; what is left if None.

    Raises:
      ValueError: `data * model` is not the number of devices.
    """
    count = jax.device_count()
    model = count // data if model is None else model
    if data * model != count:
        raise ValueError(
            f"data, model: {data} x {model} is not the number of devices, {count}"
        )
    devices = np.asarray(jax.devices()).reshape(data, model)
    return Mesh(devices, (DATA, MODEL))


def _split(mesh: Mesh, axis: str, *sizes: int) -> str | None:
    """`axis` if the mesh has it and it divides all `sizes`, else None."""
    if axis not in mesh.shape or any(size % mesh.shape[axis] for size in sizes):
        return None
    return axis


def parameter_sharding(
    mesh: Mesh | None, path: tuple, shape: tuple[int, ...], attention: Any
) -> Sharding:
    """Placement of the parameter at `path` of a decoder.

    Args:
      mesh: None for the default device.
      path: keys from the module to the parameter, its layer's name last but one.
      shape: of the parameter; weights are [out, in].
      attention: has `num_heads` and `num_kv_heads`, which are not cut in two.
    """
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    layer, kind = path[-2], path[-1]
    if layer not in _SPLIT:
        return NamedSharding(mesh, PartitionSpec())
    dimension = _SPLIT[layer]
    if kind == "bias" and dimension == 1:
        return NamedSharding(mesh, PartitionSpec())
    heads = {
        "query": attention.num_heads,
        "out": attention.num_heads,
        "key": attention.num_kv_heads,
        "value": attention.num_kv_heads,
    }
    axis = _split(mesh, MODEL, shape[dimension], heads.get(layer, shape[dimension]))
    spec = [None] * len(shape)
    spec[dimension] = axis
    return NamedSharding(mesh, PartitionSpec(*spec))


def shard_cache(mesh: Mesh | None, cache: Any) -> Any:
    """A `KVCache` with rows over `data` and heads over `model`."""
    if mesh is None:
        return cache

    def place(x: Array) -> Array:
        spec = [_split(mesh, DATA, x.shape[0]), *[None] * (x.ndim - 1)]
        if x.ndim == 4:
            spec[2] = _split(mesh, MODEL, x.shape[2])
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, PartitionSpec(*spec))
        )

    return jax.tree.map(place, cache)


def gather_vocabulary(mesh: Mesh | None, logits: Array) -> Array:
    """Logits [B, L, V] with rows over `data` and the whole vocabulary together.

    Verification sorts it, which no device could do on a part.
    """
    if mesh is None:
        return logits
    spec = PartitionSpec(_split(mesh, DATA, logits.shape[0]), None, None)
    return jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, spec))


def spread_vmap(mesh: Mesh, function: Callable) -> Callable:
    """`jax.vmap(function)` with the rows split over the mesh's axis `data`.

    Every device works through its own rows, none waits for another. On a CPU this is
    how a batch uses its cores: as devices (`jax_num_cpu_devices`).

    Args:
      mesh: has the axis `data`.
      function: of one row; its arguments and results are pytrees of arrays.

    Raises:
      ValueError: when called with a number of rows that `data` does not divide.
    """
    parts = mesh.shape[DATA]
    rows = PartitionSpec(DATA)
    split = jax.shard_map(
        jax.vmap(function), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )

    def spread(*args: Any) -> Any:
        for leaf in jax.tree.leaves(args):
            if leaf.shape[0] % parts:
                raise ValueError(
                    f"args: {leaf.shape[0]} rows cannot be split evenly over the "
                    f"{parts} devices of the mesh's axis {DATA!r}"
                )
        return split(*args)

    return spread


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters lie on, None if they lie on one device."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def place_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays [B, ...] split over `data`; the same values in every process."""
    if mesh is None:
        return tree

    def place(x: Array) -> Array:
        spec = [_split(mesh, DATA, x.shape[0])] if x.ndim else []
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        if is_concrete(x) and jax.process_count() > 1:
            return _from_every_process(x, sharding)
        return jax.device_put(x, sharding)

    return jax.tree.map(place, tree)


def _from_every_process(x: Array, sharding: NamedSharding) -> Array:
    """A global array of what every process holds whole."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _from_every_process(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: whole[index])


def gather(mesh: Mesh | None, tree: Any) -> Any:
    """The same arrays whole on every device, so that any process can read them."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, everywhere), tree)
