"""Llama 2, 3, 3.1, 3.2, and models of that shape (SmolLM2, TinyLlama)."""

from __future__ import annotations

from flax import nnx

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description
from globalres_jax.models.family import PRE_NORM_NAMES, Family
from globalres_jax.models.layers import Attention, GatedMLP, Layer, RMSNorm, silu


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


def configure(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    described.require("hidden_act", "silu")
    bias = bool(described.get("attention_bias", False))
    return DecoderConfig(
        block=LlamaBlock,
        vocab_size=int(described.get("vocab_size")),
        layers=(Layer(described.rope()),) * described.num_layers,
        attention=described.attention(qkv_bias=bias, out_bias=bias),
        mlp_width=int(described.get("intermediate_size")),
        mlp_bias=bool(described.get("mlp_bias", False)),
        norm_eps=float(described.get("rms_norm_eps", 1e-6)),
        tied=bool(described.get("tie_word_embeddings", False)),
    )


LLAMA = Family(
    architectures=("LlamaForCausalLM",),
    gguf=("llama",),
    configure=configure,
    names=PRE_NORM_NAMES,
    gguf_interleaved=True,
)
