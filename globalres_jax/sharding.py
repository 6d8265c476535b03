"""Rows of a batch over the devices of a mesh: data parallel over its axis `data`.

Rows that do not divide evenly are replicated, and so they are on a mesh that lacks the
axis. What a model's own arrays do on the axis `model` is `models.placement`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from globalres_jax.base import Array
from globalres_jax.validation import is_concrete

DATA, MODEL = "data", "model"


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


def dividing_axis(mesh: Mesh, axis: str, *sizes: int) -> str | None:
    """`axis` if the mesh has it and it divides all `sizes`, else None."""
    if axis not in mesh.shape or any(size % mesh.shape[axis] for size in sizes):
        return None
    return axis


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
        spec = [dividing_axis(mesh, DATA, x.shape[0])] if x.ndim else []
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
