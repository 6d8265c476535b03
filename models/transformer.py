"""A decoder-only transformer: RMSNorm, rotary positions, grouped queries, gated MLP.

Used functionally: `as_model_fn` splits the module once and returns the pure
`ModelFn` that decoding is written against. Positions and attention mask are
arguments, so a token tree needs no change here.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from globalres_jax.models.layers import Rope, attend, rotate

from globalres_jax.base import Array, Params
from globalres_jax.cache import KVCache, append_slots, init_cache, write_slots


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of the model; `num_heads` query heads share `num_kv_heads` keys."""

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0


class Attention(nnx.Module):
    """Self-attention over the cache, or over the tokens themselves without one."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        inner = config.num_heads * config.head_dim
        inner_kv = config.num_kv_heads * config.head_dim
        self.query = nnx.Linear(config.width, inner, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(config.width, inner_kv, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(config.width, inner_kv, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(inner, config.width, use_bias=False, rngs=rngs)

    def __call__(self, x, positions, mask, slots=None, keys=None, values=None):
        """Returns the output [B, L, width] and the rows of keys and values."""
        config = self.config
        heads = (*x.shape[:2], -1, config.head_dim)
        frequencies = Rope(config.rope_base).frequencies(config.head_dim)
        query = rotate(self.query(x).reshape(heads), positions, frequencies)
        key = rotate(self.key(x).reshape(heads), positions, frequencies)
        value = self.value(x).reshape(heads)
        if slots is not None:
            key = write_slots(keys, slots, key)
            value = write_slots(values, slots, value)
        mixed = attend(query, key, value, mask)
        return self.out(mixed.reshape(*x.shape[:2], -1)), key, value


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU, each with a residual connection."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, mlp = config.width, config.mlp_width
        self.attention_norm = nnx.RMSNorm(width, epsilon=config.norm_eps, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, epsilon=config.norm_eps, rngs=rngs)
        self.gate = nnx.Linear(width, mlp, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, mlp, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(mlp, width, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self, x, positions, mask, slots=None, keys=None, values=None, rngs=None
    ):
        """Returns the output [B, L, width] and the rows of keys and values."""

        def drop(y: Array) -> Array:
            return y if rngs is None else self.dropout(y, rngs=rngs)

        mixed, keys, values = self.attention(
            self.attention_norm(x), positions, mask, slots, keys, values
        )
        x = x + drop(mixed)
        y = self.mlp_norm(x)
        x = x + drop(self.down(jax.nn.silu(self.gate(y)) * self.up(y)))
        return x, keys, values


class Transformer(nnx.Module):
    """The whole model; the embedding also serves as the output head."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.norm = nnx.RMSNorm(config.width, epsilon=config.norm_eps, rngs=rngs)

    def __call__(self, tokens, positions, cache: KVCache, mask):
        """The `ModelFn` contract (see `globalres_jax.base`), less `params`."""
        slots = append_slots(cache.length, tokens.shape[1], cache.capacity)
        x = self.embedding(tokens)
        rows = []
        for layer, block in enumerate(self.blocks):
            x, keys, values = block(
                x, positions, mask, slots, cache.keys[layer], cache.values[layer]
            )
            rows.append((keys, values))
        keys, values = zip(*rows, strict=True)
        places = write_slots(cache.positions, slots, positions)
        cache = KVCache(keys, values, places, cache.length + tokens.shape[1])
        return self.embedding.attend(self.norm(x)), cache

    def score(self, tokens: Array, rngs: nnx.Rngs | None = None) -> Array:
        """Logits [B, L, V] of whole texts, causal, without a cache (training)."""
        length = tokens.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
        mask = jnp.broadcast_to(
            jnp.tril(jnp.ones((length, length), bool))[None],
            (tokens.shape[0], length, length),
        )
        x = self.embedding(tokens)
        for block in self.blocks:
            x, _, _ = block(x, positions, mask, rngs=rngs)
        return self.embedding.attend(self.norm(x))


@dataclasses.dataclass(frozen=True)
class TransformerFn:
    """The pure `ModelFn` of a configuration: hashable, equal for equal shapes."""

    config: TransformerConfig

    def _graph(self) -> nnx.GraphDef:
        return nnx.split(
            nnx.eval_shape(lambda: Transformer(self.config, rngs=nnx.Rngs(0)))
        )[0]

    def __call__(
        self,
        params: Params,
        tokens: Array,
        positions: Array,
        cache: KVCache,
        mask: Array,
    ) -> tuple[Array, KVCache]:
        return nnx.merge(self._graph(), params)(tokens, positions, cache, mask)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.config.num_layers

    def keep_layers(self, layers: tuple[int, ...]) -> TransformerFn:
        """The function of a model with these layers alone."""
        return TransformerFn(dataclasses.replace(self.config, num_layers=len(layers)))

    def init_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens."""
        config = self.config
        return init_cache(
            config.num_layers, batch, length, config.num_kv_heads, config.head_dim
        )
