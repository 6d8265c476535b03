"""Layers that the model families share.

Weights lie as checkpoints have them, [out, in], so that loading only moves bytes.
Norms, softmax and rotations are computed in float32 whatever the parameters' type.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from globalres_jax.base import Array
from globalres_jax.cache import append
from globalres_jax.models.rope import Rope, rotate


def soft_cap(x: Array, cap: float | None) -> Array:
    """Squeezes `x` into (-cap, cap) (Gemma 2)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    scale: float | None = None,
    cap: float | None = None,
) -> Array:
    """Grouped-query attention.

    Args:
      query: [B, L, H, D].
      key: [B, S, K, D] with K dividing H.
      value: as `key`.
      mask: [B, L, S], True where token l may look at slot s.
      scale: of the scores; D^-1/2 if None.
      cap: soft cap of the scores.

    Returns:
      [B, L, H, D].
    """
    batch, length, _, dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, dim)
    scores = jnp.einsum("blkgd,bskd->bkgls", grouped, key).astype(jnp.float32)
    scores = soft_cap(scores * (dim**-0.5 if scale is None else scale), cap)
    # A finite floor: a row that may look at nothing (padding) stays free of NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgls,bskd->blkgd", weights, value).reshape(query.shape)


def project(x: Array, weight: Array) -> Array:
    """x W^T for `x [..., in]` and W [out, in]: [..., out]."""
    # With W first a CPU multiplies a few rows up to four times faster.
    last = ((1,), (x.ndim - 1,))
    return jnp.moveaxis(jax.lax.dot_general(weight, x, (last, ((), ()))), 0, -1)


class Linear(nnx.Module):
    """x W^T + b, W [out, in]."""

    def __init__(self, width_in: int, width_out: int, bias: bool = False):
        self.weight = nnx.Param(jnp.zeros((width_out, width_in)))
        self.bias = nnx.Param(jnp.zeros(width_out)) if bias else None

    def __call__(self, x: Array) -> Array:
        y = project(x, self.weight[...])
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        size = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normal = wide * jax.lax.rsqrt(size + self.eps)
        scale = jnp.broadcast_to(self.scale[...].astype(jnp.float32), x.shape)
        return (normal * scale).astype(x.dtype)


class Embedding(nnx.Module):
    """A row for each token."""

    def __init__(self, vocab_size: int, width: int):
        self.weight = nnx.Param(jnp.zeros((vocab_size, width)))

    def __call__(self, tokens: Array) -> Array:
        return self.weight[...][tokens]

    def attend(self, x: Array) -> Array:
        """Logits of the tied head."""
        return project(x, self.weight[...])


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(
        self, width: int, inner: int, activation: Callable, bias: bool = False
    ):
        self.gate = Linear(width, inner, bias)
        self.up = Linear(width, inner, bias)
        self.down = Linear(inner, width, bias)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        return self.down(self.activation(self.gate(x)) * self.up(x))


#: The activation of Gemma, and the others'.
gelu = functools.partial(jax.nn.gelu, approximate=True)
silu = jax.nn.silu


@dataclasses.dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer.

    Attributes:
      rope: rotary embedding.
      window: a token sees itself and the `window - 1` positions before it; all if
        None.
    """

    rope: Rope
    window: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Shape of attention; `num_heads` query heads share `num_kv_heads` keys.

    Attributes:
      qkv_bias, out_bias: whether the projections have a bias.
      qk_norm_eps: epsilon of the norms of queries and keys, None without norms.
      scale: of the scores; head_dim^-1/2 if None.
      cap: soft cap of the scores.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm_eps: float | None = None
    scale: float | None = None
    cap: float | None = None


#: What may be done to features [B, L, width] on their way to the residual stream.
Drop = Callable[[Array], Array]


def keep(x: Array) -> Array:
    """No dropout."""
    return x


def dropout(rate: float, key: Array) -> Drop:
    """Zeroes a part `rate` of the features, others at each call, and scales the rest.

    Dropout (Srivastava et al. 2014). Made anew for each pass of a model, since the
    calls are told apart by counting them.
    """
    calls = itertools.count()

    def drop(x: Array) -> Array:
        stays = jax.random.bernoulli(
            jax.random.fold_in(key, next(calls)), 1 - rate, x.shape
        )
        return jnp.where(stays, x / (1 - rate), jnp.zeros_like(x))

    return drop


class Attention(nnx.Module):
    """Self-attention over the cache."""

    def __init__(self, shape: AttentionShape, layer: Layer):
        self.shape, self.layer = shape, layer
        inner = shape.num_heads * shape.head_dim
        inner_kv = shape.num_kv_heads * shape.head_dim
        self.query = Linear(shape.width, inner, shape.qkv_bias)
        self.key = Linear(shape.width, inner_kv, shape.qkv_bias)
        self.value = Linear(shape.width, inner_kv, shape.qkv_bias)
        self.out = Linear(inner, shape.width, shape.out_bias)
        if shape.qk_norm_eps is not None:
            self.query_norm = RMSNorm(shape.head_dim, shape.qk_norm_eps)
            self.key_norm = RMSNorm(shape.head_dim, shape.qk_norm_eps)

    def __call__(self, x: Array, step: Step, keys: Array, values: Array):
        """Returns the output [B, L, width] and the updated keys and values."""
        shape = self.shape
        heads = (*x.shape[:2], -1, shape.head_dim)
        query, key = self.query(x).reshape(heads), self.key(x).reshape(heads)
        if shape.qk_norm_eps is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        frequencies = self.layer.rope.frequencies(shape.head_dim)
        query = rotate(query, step.positions, frequencies)
        key = rotate(key, step.positions, frequencies)
        keys = append(keys, step.start, key)
        values = append(values, step.start, self.value(x).reshape(heads))
        mask = step.mask
        if self.layer.window is not None:
            ago = step.positions[:, :, None] - step.slot_positions[:, None, :]
            mask = mask & (ago < self.layer.window)
        mixed = attend(query, keys, values, mask, shape.scale, shape.cap)
        return self.out(mixed.reshape(*x.shape[:2], -1)), keys, values


@dataclasses.dataclass(frozen=True)
class Step:
    """Where the tokens of one call stand.

    Attributes:
      positions: [B, L] place in the text.
      start: [B] cache slot of the first token of each row; the others follow.
      slot_positions: [B, S] place in the text of what each slot holds.
      mask: [B, L, S] slots that each token may look at.
      drop: what the output of attention and MLP goes through: dropout in training.
    """

    positions: Array
    start: Array
    slot_positions: Array
    mask: Array
    drop: Drop = keep
