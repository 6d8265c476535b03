"""The frame of every family: embedding, blocks over the cache, norm, head.

Used functionally: `DecoderFn` is the pure `ModelFn` that decoding is written against.
Positions and attention mask are arguments, so a token tree needs no change here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from globalres_jax.base import Array, Params
from globalres_jax.cache import KVCache, append, init_cache
from globalres_jax.models.layers import (
    AttentionShape,
    Drop,
    Embedding,
    Layer,
    Linear,
    RMSNorm,
    Step,
    keep,
    soft_cap,
)
from globalres_jax.models.placement import gather_vocabulary, shard_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a model.

    Attributes:
      block: `block(config, layer)` makes the module of one layer.
      layers: what may differ from layer to layer.
      mlp_width: width inside the gated MLP.
      mlp_bias: whether its projections have a bias.
      tied: whether the embedding also serves as the output head.
      embedding_scale: embedded tokens are multiplied by this.
      logit_cap: soft cap of the logits.
    """

    block: Callable[..., nnx.Module]
    vocab_size: int
    layers: tuple[Layer, ...]
    attention: AttentionShape
    mlp_width: int
    norm_eps: float
    mlp_bias: bool = False
    tied: bool = True
    embedding_scale: float | None = None
    logit_cap: float | None = None

    @property
    def width(self) -> int:
        """Features of a token between layers."""
        return self.attention.width


class Decoder(nnx.Module):
    """A decoder-only transformer."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.width)
        self.blocks = nnx.List([config.block(config, layer) for layer in config.layers])
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size)

    def __call__(
        self,
        tokens,
        positions,
        cache: KVCache,
        mask,
        drop: Drop = keep,
        only_last: bool = False,
    ):
        """What the head multiplies, [B, L, width], and the cache.

        Arguments are those of a `ModelFn` (see `globalres_jax.base`), less `params`.
        `drop` is what every block's output goes through, dropout in training; with
        `only_last` the first result is [B, 1, width], of the last token.
        """
        places = append(cache.positions, cache.length, positions)
        step = Step(positions, cache.length, places, mask, drop)
        x = self.embedding(tokens)
        if self.config.embedding_scale is not None:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        rows = []
        for block, *row in zip(self.blocks, cache.keys, cache.values, strict=True):
            x, *row = block(x, step, *row)
            rows.append(row)
        keys, values = zip(*rows, strict=True)
        cache = KVCache(keys, values, places, cache.length + tokens.shape[1])
        return self.norm(x[:, -1:] if only_last else x), cache

    def logits(self, x):
        """Logits [B, L, V] of `x [B, L, width]`."""
        logits = self.embedding.attend(x) if self.config.tied else self.head(x)
        return soft_cap(logits.astype(jnp.float32), self.config.logit_cap)


@dataclasses.dataclass(frozen=True)
class DecoderFn:
    """The pure `ModelFn` of a configuration: hashable, equal for equal shapes.

    Attributes:
      config: shape of the model.
      dtype: of the cache.
      mesh: that parameters and cache are spread over, or None.
      only_last: whether the logits are those of the last token alone, [B, 1, V].
      features: whether what the head multiplies is returned, too.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.dtype("float32")
    mesh: Mesh | None = None
    only_last: bool = False
    features: bool = False

    #: See `base.ModelFn`: `layers.project` multiplies by W from the left.
    vocabulary_first: ClassVar[bool] = True

    def __call__(
        self,
        params: Params,
        tokens: Array,
        positions: Array,
        cache: KVCache,
        mask: Array,
    ) -> tuple:
        module = nnx.merge(graph(self.config), params)
        x, cache = module(tokens, positions, cache, mask, only_last=self.only_last)
        logits = gather_vocabulary(self.mesh, module.logits(x))
        cache = shard_cache(self.mesh, cache)
        if self.features:
            return logits, gather_vocabulary(self.mesh, x), cache
        return logits, cache

    def score(self, params: Params, tokens: Array, drop: Drop = keep) -> Array:
        """Logits [B, L, V] of whole texts [B, L]: a causal pass from an empty cache.

        Differentiable in `params`. `drop` is as in `Decoder`.
        """
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
        mask = positions[:, :, None] >= positions[:, None, :]
        module = nnx.merge(graph(self.config), params)
        cache = self.init_cache(batch, length)
        x, _ = module(tokens, positions, cache, mask, drop)
        return gather_vocabulary(self.mesh, module.logits(x))

    @property
    def of_last(self) -> DecoderFn:
        """See `base.ModelFn`."""
        return dataclasses.replace(self, only_last=True)

    @property
    def with_features(self) -> DecoderFn:
        """See `base.ModelFn`; the features are what the head multiplies."""
        return dataclasses.replace(self, features=True)

    @property
    def feature_size(self) -> int:
        """F of its features."""
        return self.config.width

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.config.layers)

    def keep_layers(self, layers: tuple[int, ...]) -> DecoderFn:
        """The function of a model with these layers alone."""
        kept = tuple(self.config.layers[layer] for layer in layers)
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, layers=kept)
        )

    def init_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens."""
        shape = self.config.attention
        cache = init_cache(
            len(self.config.layers),
            batch,
            length,
            shape.num_kv_heads,
            shape.head_dim,
            self.dtype,
        )
        return shard_cache(self.mesh, cache)


@functools.lru_cache(maxsize=64)
def graph(config: DecoderConfig) -> nnx.GraphDef:
    """The module without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config)))[0]


def parameter_shapes(config: DecoderConfig) -> Params:
    """The parameters as `jax.ShapeDtypeStruct` leaves."""
    return nnx.state(nnx.eval_shape(lambda: Decoder(config)))
