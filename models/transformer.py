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


def rotate(x: Array, positions: Array, base: float) -> Array:
    """Rotary position embedding (arXiv 2104.09864), halves paired.

    Args:
      x: [B, L, heads, head_dim].
      positions: [B, L] integers.
      base: longest wavelength over 2 pi.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    left, right = x[..., :half], x[..., half:]
    turned = jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )
    return turned.astype(x.dtype)


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Grouped-query attention.

    Args:
      query: [B, L, H, D].
      key: [B, S, K, D] with K dividing H.
      value: as `key`.
      mask: [B, L, S], True where token l may look at slot s.

    Returns:
      [B, L, H, D].
    """
    batch, length, _, dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, dim)
    scores = jnp.einsum("blkgd,bskd->bkgls", grouped, key).astype(jnp.float32)
    scores = scores * dim**-0.5
    # A finite floor: a row that may look at nothing (padding) stays free of NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgls,bskd->blkgd", weights, value).reshape(query.shape)


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
        query = rotate(self.query(x).reshape(heads), positions, config.rope_base)
        key = rotate(self.key(x).reshape(heads), positions, config.rope_base)
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
        keys, values = (jnp.stack(parts) for parts in zip(*rows, strict=True))
        cache = KVCache(keys, values, cache.length + tokens.shape[1])
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

    def init_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens."""
        config = self.config
        return init_cache(
            config.num_layers, batch, length, config.num_kv_heads, config.head_dim
        )
