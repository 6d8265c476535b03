"""Parameters to begin training with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from globalres_jax.base import Array, Params
from globalres_jax.models.decoder import DecoderConfig, parameter_shapes

_EMBEDDING = jax.nn.initializers.normal(0.02)
_WEIGHT = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)


def initial_parameters(key: Array, config: DecoderConfig) -> Params:
    """Random parameters in float32: outputs as large as inputs, logits near zero.

    Args:
      key: random key.
      config: shape of the model.
    """

    def initial(key: Array, number: int, path: tuple, shape: tuple) -> Array:
        layer, kind = path[-2], path[-1]
        if kind == "scale":
            return jnp.ones(shape)
        if kind == "bias":
            return jnp.zeros(shape)
        draw = _EMBEDDING if layer in ("embedding", "head") else _WEIGHT
        return draw(jax.random.fold_in(key, number), shape, jnp.float32)

    @jax.jit
    def draw_all(key: Array) -> Params:
        return nnx.from_flat_state(
            (path, leaf.replace(initial(key, number, path, leaf.shape)))
            for number, (path, leaf) in enumerate(wanted)
        )

    wanted = nnx.to_flat_state(parameter_shapes(config))
    return draw_all(key)
