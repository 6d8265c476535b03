"""The parts of a draft that are its own: what is trained and stored."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from globalres_jax.base import Array, Params
from globalres_jax.cache import KVCache, append, init_cache
from globalres_jax.models.drafts.config import FEATURE, LAYERS, DraftShape
from globalres_jax.models.layers import (
    Drop,
    Linear,
    RMSNorm,
    Step,
    keep,
    project,
    soft_cap,
)
from globalres_jax.models.placement import shard_cache


class DraftWeights(NamedTuple):
    """All that a draft computes with.

    Attributes:
      own: the trained parameters.
      embedding: [V, D] the target's token embedding.
      head: [N, D] the rows of the target's head for the draft's tokens.
    """

    own: Params
    embedding: Array
    head: Array


class DraftLayers(nnx.Module):
    """Input map, layers, norm, output map, and biases."""

    def __init__(self, shape: DraftShape):
        decoder, eps = shape.decoder, shape.decoder.norm_eps
        self.shape = shape
        if shape.kind != LAYERS:
            parts = 1 + (shape.kind == FEATURE)
            self.embedding_norm = RMSNorm(shape.width, eps)
            if shape.kind == FEATURE:
                self.feature_norm = RMSNorm(shape.width, eps)
            self.input = Linear(parts * shape.width, decoder.width)
        self.blocks = nnx.List(
            [decoder.block(decoder, layer) for layer in decoder.layers]
        )
        self.norm = RMSNorm(decoder.width, eps)
        if shape.output_map:
            self.output = Linear(decoder.width, shape.width)
        if shape.bias:
            self.bias = nnx.Param(jnp.zeros(shape.num_outputs))

    def __call__(self, x, features, positions, cache: KVCache, mask, drop: Drop = keep):
        """What the head multiplies, [B, L, D], and the cache.

        Args:
          x: [B, L, D] embedded tokens.
          features: [B, L, D] of the token before each; None but for kind "feature".
          positions: [B, L].
          cache: keys and values.
          mask: [B, L, S].
          drop: what every block's output goes through, dropout in training.
        """
        places = append(cache.positions, cache.length, positions)
        step = Step(positions, cache.length, places, mask, drop)
        if self.shape.kind == LAYERS:
            if self.shape.embedding_scale is not None:
                x = x * jnp.asarray(self.shape.embedding_scale, x.dtype)
        else:
            x = self.embedding_norm(x)
            if self.shape.kind == FEATURE:
                x = jnp.concatenate([x, self.feature_norm(features)], axis=-1)
            x = self.input(x)
        rows = []
        for block, *row in zip(self.blocks, cache.keys, cache.values, strict=True):
            x, *row = block(x, step, *row)
            rows.append(row)
        keys, values = zip(*rows, strict=True)
        cache = KVCache(keys, values, places, cache.length + x.shape[1])
        x = self.norm(x)
        return self.output(x) if self.shape.output_map else x, cache

    def logits(self, x, head):
        """Logits [..., N] of `x [..., D]` by the rows of the head [N, D]."""
        logits = project(x, head).astype(jnp.float32)
        logits = soft_cap(logits, self.shape.logit_cap)
        if not self.shape.bias:
            return logits
        bias = self.bias[...].astype(jnp.float32)
        return logits + jnp.broadcast_to(bias, logits.shape)


@dataclasses.dataclass(frozen=True)
class DraftFn:
    """A draft as pure functions of `DraftWeights`: hashable, equal for equal shapes.

    Called it is a `ModelFn` whose logits are [B, L, N], over the draft's own tokens;
    of kind "feature" it is to be used by `read` and `logits`.

    Attributes:
      shape: of the draft.
      dtype: that it computes in, and of the cache.
      mesh: that the target is spread over, or None.
      only_last: whether the logits are those of the last token alone, [B, 1, N].
    """

    shape: DraftShape
    dtype: jnp.dtype = jnp.dtype("float32")
    mesh: Mesh | None = None
    only_last: bool = False

    def __call__(
        self,
        params: DraftWeights,
        tokens: Array,
        positions: Array,
        cache: KVCache,
        mask: Array,
    ) -> tuple[Array, KVCache]:
        x, cache = self.read(params, tokens, None, positions, cache, mask)
        return self.logits(params, x[:, -1:] if self.only_last else x), cache

    def read(
        self,
        params: DraftWeights,
        tokens: Array,
        features: Array | None,
        positions: Array,
        cache: KVCache,
        mask: Array,
        drop: Drop = keep,
    ) -> tuple[Array, KVCache]:
        """Appends tokens [B, L] to the cache, as a `ModelFn` does.

        Args:
          params: weights.
          tokens: [B, L].
          features: [B, L, D], of the token before each; None but for kind "feature".
          positions: [B, L].
          cache: of this draft.
          mask: [B, L, S].
          drop: as in `DraftLayers`.

        Returns:
          Its own features [B, L, D], which the head multiplies, and the cache.
        """
        module = nnx.merge(graph(self.shape), params.own)
        x = params.embedding[tokens].astype(self.dtype)
        if features is not None:
            features = features.astype(self.dtype)
        x, cache = module(x, features, positions, cache, mask, drop)
        return x, shard_cache(self.mesh, cache)

    def logits(self, params: DraftWeights, x: Array) -> Array:
        """Logits [..., N], float32, of its features `x [..., D]`."""
        module = nnx.merge(graph(self.shape), params.own)
        return module.logits(x, params.head.astype(self.dtype))

    @property
    def of_last(self) -> DraftFn:
        """See `base.ModelFn`."""
        return dataclasses.replace(self, only_last=True)

    @property
    def feature_size(self) -> int:
        """D."""
        return self.shape.width

    def init_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens."""
        decoder = self.shape.decoder
        attention = decoder.attention
        cache = init_cache(
            len(decoder.layers),
            batch,
            length,
            attention.num_kv_heads,
            attention.head_dim,
            self.dtype,
        )
        return shard_cache(self.mesh, cache)


@functools.lru_cache(maxsize=64)
def graph(shape: DraftShape) -> nnx.GraphDef:
    """The module without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: DraftLayers(shape)))[0]


def parameter_shapes(shape: DraftShape) -> Params:
    """The trained parameters as `jax.ShapeDtypeStruct` leaves."""
    return nnx.state(nnx.eval_shape(lambda: DraftLayers(shape)))


def random_parameters(key: Array, shape: DraftShape) -> Params:
    """Parameters to begin training with, in float32.

    Outputs of a map are as large as its inputs; a map that changes no width begins as
    the identity, and biases as zero.
    """
    weight = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    wanted = nnx.to_flat_state(parameter_shapes(shape))

    def initial(key: Array, path: tuple, shape: tuple[int, ...]) -> Array:
        if path[-1] == "scale":
            return jnp.ones(shape)
        if path[-1] == "bias":
            return jnp.zeros(shape)
        if path[-2] == "output" and shape[0] == shape[1]:
            return jnp.eye(shape[0])
        return weight(key, shape, jnp.float32)

    @jax.jit
    def draw_all(key: Array) -> Params:
        keys = jax.random.split(key, len(wanted))
        return nnx.from_flat_state(
            (path, leaf.replace(initial(key, path, leaf.shape)))
            for key, (path, leaf) in zip(keys, wanted, strict=True)
        )

    return draw_all(key)
