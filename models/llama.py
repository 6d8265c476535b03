"""Llama 2, 3, 3.1, 3.2, and models of that shape (SmolLM2, TinyLlama)."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import OUT_BIAS, Description
from globalres_jax.models.family import PRE_NORM_NAMES, UNSAID, Family
from globalres_jax.models.layers import (
    Attention,
    AttentionShape,
    GatedMLP,
    Layer,
    RMSNorm,
    silu,
)
from globalres_jax.models.rope_options import rope


class LlamaBlock(nnx.Module):
    """Pre-norm attention and SwiGLU, each with a residual connection."""

    def __init__(self, config: DecoderConfig, layer: Layer):
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config.attention, layer)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_width, silu, config.mlp_bias)

    def __call__(self, x, step, keys, values):
        """Returns the output [B, L, width] and the updated keys and values."""
        mixed, keys, values = self.attention(self.attention_norm(x), step, keys, values)
        x = x + step.drop(mixed)
        return x + step.drop(self.mlp(self.mlp_norm(x))), keys, values


def decoder_config(
    described: Description, layers: tuple[Layer, ...], attention: AttentionShape
) -> DecoderConfig:
    """The shape of a model of Llama's blocks; its layers and attention are given."""
    described.word("hidden_act", "silu", "swish")
    if described.says("sliding_window"):  # nonsense is refused where it is not used
        described.whole("sliding_window")
    return DecoderConfig(
        block=LlamaBlock,
        vocab_size=described.whole("vocab_size"),
        layers=layers,
        attention=attention,
        mlp_width=described.whole("intermediate_size"),
        norm_eps=described.epsilon,
        tied=described.flag("tie_word_embeddings"),
    )


def biased_attention(described: Description, **changes: Any) -> AttentionShape:
    """Attention whose projections all have a bias if `attention_bias` says so."""
    bias = described.flag("attention_bias")
    # GGUF files have the biases that they have.
    out = described.flag(OUT_BIAS) if described.says(OUT_BIAS) else bias
    return described.attention(qkv_bias=bias, out_bias=out, **changes)


def configure(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    layers = (Layer(rope(described)),) * described.num_layers
    config = decoder_config(described, layers, biased_attention(described))
    return dataclasses.replace(config, mlp_bias=described.flag("mlp_bias"))


LLAMA = Family(
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    gguf=("llama",),
    defaults={
        **UNSAID,
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    configure=configure,
    names=PRE_NORM_NAMES,
    gguf_interleaved=True,
)
