"""Gemma 2 (soft caps) and the text part of Gemma 3 (normalised queries and keys).

Both alternate layers with a sliding window and layers that see everything, scale the
embedding, and have a norm after attention and MLP as well as before.
"""

from __future__ import annotations

from flax import nnx

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description
from globalres_jax.models.family import (
    FRAME_NAMES,
    PROJECTION_NAMES,
    Family,
    norm_names,
)
from globalres_jax.models.layers import Attention, GatedMLP, Layer, RMSNorm, gelu


class GemmaBlock(nnx.Module):
    """Attention and gated MLP between two norms each, with residual connections."""

    def __init__(self, config: DecoderConfig, layer: Layer):
        width, eps = config.width, config.norm_eps
        self.attention_norm = RMSNorm(width, eps)
        self.attention = Attention(config.attention, layer)
        self.attention_post_norm = RMSNorm(width, eps)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp = GatedMLP(width, config.mlp_width, gelu)
        self.mlp_post_norm = RMSNorm(width, eps)

    def __call__(self, x, step, keys, values):
        """Returns the output [B, L, width] and the updated keys and values."""
        mixed, keys, values = self.attention(self.attention_norm(x), step, keys, values)
        x = x + step.drop(self.attention_post_norm(mixed))
        inside = self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
        return x + step.drop(inside), keys, values


def _configure(described: Description, layers: tuple[Layer, ...], **attention):
    for name in ("hidden_activation", "hidden_act"):
        described.require(name, "gelu_pytorch_tanh")
    described.require("attention_bias", False)
    width = int(described.get("hidden_size"))
    return DecoderConfig(
        block=GemmaBlock,
        vocab_size=int(described.get("vocab_size")),
        layers=layers,
        attention=described.attention(
            scale=float(described.get("query_pre_attn_scalar", 256)) ** -0.5,
            cap=described.get("attn_logit_softcapping", None),
            **attention,
        ),
        mlp_width=int(described.get("intermediate_size")),
        norm_eps=float(described.get("rms_norm_eps", 1e-6)),
        tied=bool(described.get("tie_word_embeddings", True)),
        embedding_scale=width**0.5,
        logit_cap=described.get("final_logit_softcapping", None),
    )


def configure_gemma2(described: Description) -> DecoderConfig:
    """Every other layer slides, the first one included."""
    rope, window = described.rope(), int(described.get("sliding_window", 4096))
    sliding = [layer % 2 == 0 for layer in range(described.num_layers)]
    layers = tuple(
        Layer(rope, window if slides else None)
        for slides in described.layer_kinds(sliding)
    )
    return _configure(described, layers)


def configure_gemma3(described: Description) -> DecoderConfig:
    """Every sixth layer sees everything, and has a rotation of its own."""
    window = int(described.get("sliding_window", 4096))
    pattern = int(described.get("sliding_window_pattern", 6))
    sliding = [(layer + 1) % pattern != 0 for layer in range(described.num_layers)]
    whole = Layer(described.rope(base=1_000_000.0))
    local = Layer(described.local_rope(), window)
    layers = tuple(
        local if slides else whole for slides in described.layer_kinds(sliding)
    )
    eps = float(described.get("rms_norm_eps", 1e-6))
    return _configure(described, layers, qk_norm_eps=eps)


_NAMES = {
    **FRAME_NAMES,
    **PROJECTION_NAMES,
    **norm_names(
        "attention_post_norm", "post_attention_layernorm", "post_attention_norm"
    ),
    **norm_names("mlp_norm", "pre_feedforward_layernorm", "ffn_norm"),
    **norm_names("mlp_post_norm", "post_feedforward_layernorm", "post_ffw_norm"),
}

GEMMA2 = Family(
    architectures=("Gemma2ForCausalLM",),
    gguf=("gemma2",),
    configure=configure_gemma2,
    names=_NAMES,
    norm_offset=1.0,
)

GEMMA3 = Family(
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf=("gemma3",),
    configure=configure_gemma3,
    names=_NAMES,
    norm_offset=1.0,
)
