"""Mistral: Llama's block with a sliding window.

GGUF files call it `llama` and do not tell the window, so there it is not applied.
"""

from __future__ import annotations

import dataclasses

from globalres_jax.models import llama
from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description
from globalres_jax.models.family import PRE_NORM_NAMES, Family
from globalres_jax.models.layers import Layer


def configure(described: Description) -> DecoderConfig:
    """The shape that a description stands for."""
    window = described.get("sliding_window", None)
    layer = Layer(described.rope(), None if window is None else int(window))
    return dataclasses.replace(
        llama.configure(described), layers=(layer,) * described.num_layers
    )


MISTRAL = Family(
    architectures=("MistralForCausalLM",),
    gguf=(),
    configure=configure,
    names=PRE_NORM_NAMES,
)
