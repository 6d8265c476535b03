"""Qwen2.5 (biased queries, keys and values) and Qwen3 (normalised queries and keys)."""

from __future__ import annotations

import dataclasses

from globalres_jax.models import llama
from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description
from globalres_jax.models.family import PRE_NORM_NAMES, Family
from globalres_jax.models.layers import Layer


def _layers(described: Description) -> tuple[Layer, ...]:
    """All layers see everything, but for those after `max_window_layers` if asked."""
    windowed = bool(described.get("use_sliding_window", False))
    whole = int(described.get("max_window_layers", 28))
    sliding = described.layer_kinds(
        [windowed and layer >= whole for layer in range(described.num_layers)]
    )
    rope = described.rope(base=1_000_000.0)
    window = int(described.get("sliding_window")) if any(sliding) else None
    return tuple(Layer(rope, window if slides else None) for slides in sliding)


def configure_qwen2(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    return dataclasses.replace(
        llama.configure(described),
        layers=_layers(described),
        attention=described.attention(qkv_bias=True),
    )


def configure_qwen3(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    config = llama.configure(described)
    return dataclasses.replace(
        config,
        layers=_layers(described),
        attention=dataclasses.replace(config.attention, qk_norm_eps=config.norm_eps),
    )


QWEN2 = Family(
    architectures=("Qwen2ForCausalLM",),
    gguf=("qwen2",),
    configure=configure_qwen2,
    names=PRE_NORM_NAMES,
)

QWEN3 = Family(
    architectures=("Qwen3ForCausalLM",),
    gguf=("qwen3",),
    configure=configure_qwen3,
    names=PRE_NORM_NAMES,
)
