"""Qwen2.5 (biased queries, keys and values) and Qwen3 (normalised queries and keys)."""

from __future__ import annotations

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description
from globalres_jax.models.family import PRE_NORM_NAMES, UNSAID, Family
from globalres_jax.models.layers import Layer
from globalres_jax.models.llama import biased_attention, decoder_config
from globalres_jax.models.rope_options import rope


def _layers(described: Description) -> tuple[Layer, ...]:
    """All layers see everything, but for those after `max_window_layers` if asked."""
    window = None
    if described.flag("use_sliding_window") and described.says("sliding_window"):
        window = described.whole("sliding_window")
    whole = described.whole("max_window_layers", 0)
    sliding = described.layer_kinds(
        [window is not None and layer >= whole for layer in range(described.num_layers)]
    )
    if any(sliding) and window is None:
        raise described.error(
            "layer_types", "without sliding layers where no sliding window is used"
        )
    rotation = rope(described)
    return tuple(Layer(rotation, window if slides else None) for slides in sliding)


def configure_qwen2(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    attention = described.attention(qkv_bias=True)
    return decoder_config(described, _layers(described), attention)


def configure_qwen3(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    eps = described.epsilon
    attention = biased_attention(described, qk_norm_eps=eps)
    return decoder_config(described, _layers(described), attention)


_DEFAULTS = {
    **UNSAID,
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Family(
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    gguf=("qwen2",),
    defaults=_DEFAULTS,
    configure=configure_qwen2,
    names=PRE_NORM_NAMES,
)

QWEN3 = Family(
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    gguf=("qwen3",),
    defaults={**_DEFAULTS, "head_dim": 128, "attention_bias": False},
    configure=configure_qwen3,
    names=PRE_NORM_NAMES,
)
