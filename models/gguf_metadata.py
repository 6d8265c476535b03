"""From the metadata of a GGUF file to the words of a `config.json`.

What a file leaves out is what llama.cpp takes for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from globalres_jax.models.description import (
    OUT_BIAS,
    PERIOD,
    Description,
    is_whole,
    shown,
)
from globalres_jax.models.family import UNSAID

if TYPE_CHECKING:
    from globalres_jax.models.gguf_file import GGUFFile

#: `config.json`'s word for each of a family's metadata.
_WORDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": PERIOD,
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}

#: What llama.cpp takes in all families. Norms have no epsilon of its own.
_DEFAULTS = {
    **UNSAID,
    "max_position_embeddings": None,
    "rope_theta": 10_000.0,
    "sliding_window": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "use_sliding_window": False,
    "max_window_layers": 0,
    "use_bidirectional_attention": False,
}

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"

#: What Llama 3.1 divides its frequencies by.
ROPE_FACTORS = "rope_freqs.weight"


def describe(file: GGUFFile, defaults: Mapping[str, Any]) -> Description:
    """The metadata of a file in the words of a `config.json`.

    Args:
      file: an open file.
      defaults: of its family in llama.cpp, where they are not those of all.

    Raises:
      ValueError: they are not what a model here can be.
    """
    family = file.architecture
    names = {word: f"{family}.{key}" for key, word in _WORDS.items()}
    options = {}
    for word, key in names.items():
        value = file.metadata(key)
        if value is not None:
            options[word] = _number(value)
    options |= _from_tensors(file) | _scaling(file)
    names |= {"rope_scaling": f"{family}.rope.scaling", "layer_types": names[PERIOD]}
    names["vocab_size"] = f"{_EMBEDDING}'s number of rows"
    if isinstance(options.get(PERIOD), list):
        kinds = ("full_attention", "sliding_attention")
        options["layer_types"] = [
            kinds[flag] if _is_flag(flag) else flag for flag in options.pop(PERIOD)
        ]
    if family == "gemma3":
        options |= _gemma3(options)
        names["sliding_window_pattern"] = names[PERIOD]
    described = Description(options, str(file.path), {**_DEFAULTS, **defaults}, names)
    _check(file, described)
    if family in ("gemma2", "gemma3"):
        scalar = _gemma_scale(family, described)
        options = {**options, "query_pre_attn_scalar": scalar}
    return dataclasses.replace(described, options=options)


def _from_tensors(file: GGUFFile) -> dict[str, Any]:
    """What is seen from the tensors that a file has."""
    options = {
        "tie_word_embeddings": not file.has(_HEAD),
        "attention_bias": file.has("blk.0.attn_q.bias"),
        OUT_BIAS: file.has("blk.0.attn_output.bias"),
        "mlp_bias": file.has("blk.0.ffn_up.bias"),
    }
    if file.has(_EMBEDDING) and file.shape(_EMBEDDING):
        options["vocab_size"] = file.shape(_EMBEDDING)[0]
    if file.architecture == "llama" and file.has(ROPE_FACTORS):
        (size,) = file.shape(ROPE_FACTORS) or (0,)
        options["rope_factors"] = [float(x) for x in file.read(ROPE_FACTORS, 0, size)]
    return options


def _scaling(file: GGUFFile) -> dict[str, Any]:
    """How positions are scaled: linearly where the file has a factor and no more."""
    lead = f"{file.architecture}.rope"
    kind = file.metadata(f"{lead}.scaling.type", "linear")
    factor = file.metadata(f"{lead}.scaling.factor")
    if factor is None:
        factor = file.metadata(f"{lead}.scale_linear", 0)
    if kind == "none" or (kind == "linear" and factor == 0):
        return {}
    return {"rope_scaling": {"type": kind, "factor": _number(factor)}}


def _gemma3(options: dict[str, Any]) -> dict[str, Any]:
    """What stands for none: zeros, and a window that is not there."""
    changed = {}
    if PERIOD in options:
        changed["sliding_window_pattern"] = options[PERIOD]
    if options.get("sliding_window", 0) == 0:
        changed |= {"sliding_window": None, "sliding_window_pattern": 1}
        changed["layer_types"] = None
    if options.get("final_logit_softcapping") == 0:
        changed["final_logit_softcapping"] = None
    return changed


def _gemma_scale(family: str, described: Description) -> int:
    """What GGUF leaves to the reader: only the 27B models scale by the width."""
    if described.num_layers != {"gemma2": 46, "gemma3": 62}[family]:
        return described.head_dim
    return described.whole("hidden_size") // described.whole("num_attention_heads")


def _check(file: GGUFFile, described: Description) -> None:
    """ValueError if a file says something of a kind of model that is not here."""
    family, features = file.architecture, described.head_dim
    wanted = {
        "attention.value_length": features,
        "rope.dimension_count": features,
        "rope.scaling.attn_factor": 1,
        "attention.causal": True,
        "expert_count": 0,
    }
    if family == "gemma2":
        wanted["rope.freq_base_swa"] = described.number("rope_theta")
    for key, value in wanted.items():
        found = _number(file.metadata(f"{family}.{key}", value))
        if found != value:
            raise ValueError(
                f"source: {file.path}: {family}.{key} must be {shown(value)}; got "
                f"{shown(found)}"
            )
    if described.says("rope_factors"):
        factors = described.get("rope_factors")
        if len(factors) != features // 2 or not all(0 < x < 1e30 for x in factors):
            raise ValueError(
                f"source: {file.path}: tensor {ROPE_FACTORS} must have {features // 2} "
                "positive numbers"
            )


def _is_flag(value: Any) -> bool:
    """Whether a value is true, false, or a number for one of them."""
    return isinstance(value, int) and value in (0, 1)


def _number(value: Any) -> Any:
    """One number for a list of all the same, and the shortest that was meant.

    Files round 1e-6 to 9.99999997e-7, the next float32; read as the same number as in
    a folder, it makes the same program.
    """
    alike = isinstance(value, list) and value and all(x == value[0] for x in value)
    if alike and is_whole(value[0]):
        return value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value
