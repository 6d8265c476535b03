"""Mistral: Llama's block with a sliding window.

GGUF files call it `llama` and do not tell the window, so there it is not applied.
"""

from __future__ import annotations

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description
from globalres_jax.models.family import PRE_NORM_NAMES, UNSAID, Family
from globalres_jax.models.layers import Layer
from globalres_jax.models.llama import decoder_config
from globalres_jax.models.rope_options import rope


def configure(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    slides = described.says("sliding_window")
    window = described.whole("sliding_window") if slides else None
    layers = (Layer(rope(described), window),) * described.num_layers
    return decoder_config(described, layers, described.attention())


MISTRAL = Family(
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    gguf=(),
    defaults={
        **UNSAID,
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
    },
    configure=configure,
    names=PRE_NORM_NAMES,
)
