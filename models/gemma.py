"""Gemma 2 (soft caps) and the text part of Gemma 3 (normalised queries and keys).

Both alternate layers with a sliding window and layers that see everything, scale the
embedding, and have a norm after attention and MLP as well as before.
"""

from __future__ import annotations

from flax import nnx

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import PERIOD, Description
from globalres_jax.models.family import (
    FRAME_NAMES,
    PROJECTION_NAMES,
    UNSAID,
    Family,
    norm_names,
)
from globalres_jax.models.layers import Attention, GatedMLP, Layer, RMSNorm, gelu
from globalres_jax.models.llama import biased_attention
from globalres_jax.models.rope import Rope
from globalres_jax.models.rope_options import (
    rope,
    rope_of_full_layers,
    rope_of_sliding_layers,
)


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
    described.word("hidden_activation", "gelu_pytorch_tanh")
    if described.get("use_bidirectional_attention") not in (None, False):
        raise described.error("use_bidirectional_attention", "false: texts are causal")
    attention = biased_attention(
        described,
        scale=described.number("query_pre_attn_scalar") ** -0.5,
        **attention,
    )
    return DecoderConfig(
        block=GemmaBlock,
        vocab_size=described.whole("vocab_size"),
        layers=layers,
        attention=attention,
        mlp_width=described.whole("intermediate_size"),
        norm_eps=described.epsilon,
        tied=described.flag("tie_word_embeddings"),
        embedding_scale=attention.width**0.5,
        logit_cap=_cap(described, "final_logit_softcapping"),
    )


def _cap(described: Description, name: str) -> float | None:
    return described.number(name) if described.says(name) else None


def _layers(described: Description, period: int, whole: Rope, sliding: Rope):
    """All layers slide but the last of each period, unless the file says which do."""
    kinds = described.layer_kinds(
        [(layer + 1) % period != 0 for layer in range(described.num_layers)]
    )
    window = None
    if any(kinds) or described.says("sliding_window"):
        window = described.whole("sliding_window")
    return tuple(Layer(sliding, window) if slides else Layer(whole) for slides in kinds)


def configure_gemma2(described: Description) -> DecoderConfig:
    """Every other layer slides, the first one included."""
    rotation = rope(described)
    period = described.whole(PERIOD) if described.says(PERIOD) else 2
    layers = _layers(described, period, rotation, rotation)
    return _configure(described, layers, cap=_cap(described, "attn_logit_softcapping"))


def configure_gemma3(described: Description) -> DecoderConfig:
    """Every sixth layer sees everything, and has a rotation of its own.

    The reference has an option for a cap of the scores, which it does not apply.
    """
    layers = _layers(
        described,
        described.whole("sliding_window_pattern"),
        rope_of_full_layers(described),
        rope_of_sliding_layers(described),
    )
    eps = described.epsilon
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

_DEFAULTS = {
    **UNSAID,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "use_bidirectional_attention": None,
}

GEMMA2 = Family(
    architectures=("Gemma2ForCausalLM",),
    model_types=("gemma2",),
    gguf=("gemma2",),
    defaults={
        **_DEFAULTS,
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    gguf_defaults={
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    configure=configure_gemma2,
    names=_NAMES,
    norm_offset=1.0,
)

GEMMA3 = Family(
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_types=("gemma3_text", "gemma3"),
    gguf=("gemma3",),
    defaults={
        **_DEFAULTS,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
    },
    gguf_defaults={"rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6},
    configure=configure_gemma3,
    names=_NAMES,
    stretched_context=True,
    norm_offset=1.0,
)
