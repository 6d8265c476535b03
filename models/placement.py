"""Where parameters, caches and logits lie on a mesh: tensor parallel over `model`.

Attention heads, the inside of an MLP and the vocabulary are split over the axis
`model`, rows of a batch over `data`. What does not divide evenly is replicated, and an
axis that the mesh lacks is not split over. XLA adds the communication.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from globalres_jax.base import Array
from globalres_jax.cache import KVCache
from globalres_jax.models.layers import AttentionShape
from globalres_jax.sharding import DATA, MODEL, dividing_axis

#: Dimension of a weight [out, in] that is split, by the name of its layer.
_SPLIT = {
    **dict.fromkeys(("embedding", "head", "query", "key", "value", "gate", "up"), 0),
    **dict.fromkeys(("out", "down"), 1),
}


def first_device(mesh: Mesh | None = None) -> jax.Device:
    """Where parameters lie, or the first of the devices that they are spread over."""
    return jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]


def default_dtype(mesh: Mesh | None = None) -> jnp.dtype:
    """Of weights and cache: float32 on a CPU, bfloat16 on accelerators."""
    on_cpu = first_device(mesh).platform == "cpu"
    return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)


def parameter_sharding(
    mesh: Mesh | None, path: tuple, shape: tuple[int, ...], attention: AttentionShape
) -> Sharding:
    """Placement of the parameter at `path` of a decoder.

    Args:
      mesh: None for the default device.
      path: keys from the module to the parameter, its layer's name last but one.
      shape: of the parameter; weights are [out, in].
      attention: its heads are not cut in two.
    """
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(first_device(mesh))
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
    size = shape[dimension]
    spec = [None] * len(shape)
    spec[dimension] = dividing_axis(mesh, MODEL, size, heads.get(layer, size))
    return NamedSharding(mesh, PartitionSpec(*spec))


def shard_cache(mesh: Mesh | None, cache: KVCache) -> KVCache:
    """The cache with rows over `data` and heads over `model`."""
    if mesh is None:
        return cache

    def place(x: Array) -> Array:
        spec = [dividing_axis(mesh, DATA, x.shape[0]), *[None] * (x.ndim - 1)]
        if x.ndim == 4:
            spec[2] = dividing_axis(mesh, MODEL, x.shape[2])
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, PartitionSpec(*spec))
        )

    return jax.tree.map(place, cache)


def gather_vocabulary(mesh: Mesh | None, logits: Array) -> Array:
    """Logits [B, L, V] with rows over `data` and the whole vocabulary together.

    Verification looks at whole rows, which no device could do on a part.
    """
    if mesh is None:
        return logits
    spec = PartitionSpec(dividing_axis(mesh, DATA, logits.shape[0]), None, None)
    return jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, spec))
