"""What a family of models says of itself: its shape, and the names of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from globalres_jax.models.decoder import DecoderConfig
from globalres_jax.models.description import Description

#: Module path to the names in safetensors and in GGUF; `*` is the layer.
FRAME_NAMES = {
    "embedding.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm.scale": ("model.norm.weight", "output_norm.weight"),
    "head.weight": ("lm_head.weight", "output.weight"),
}


def _block(ours: str, theirs: str, gguf: str) -> dict[str, tuple[str, str]]:
    return {
        f"blocks.*.{ours}.{kind}": (
            f"model.layers.*.{theirs}.{kind}",
            f"blk.*.{gguf}.{kind}",
        )
        for kind in ("weight", "bias")
    }


def norm_names(ours: str, theirs: str, gguf: str) -> dict[str, tuple[str, str]]:
    """The names of a norm in a block."""
    path = f"blocks.*.{ours}.scale"
    return {path: (f"model.layers.*.{theirs}.weight", f"blk.*.{gguf}.weight")}


#: Attention and MLP, alike in all families here.
PROJECTION_NAMES = {
    **_block("attention.query", "self_attn.q_proj", "attn_q"),
    **_block("attention.key", "self_attn.k_proj", "attn_k"),
    **_block("attention.value", "self_attn.v_proj", "attn_v"),
    **_block("attention.out", "self_attn.o_proj", "attn_output"),
    **_block("mlp.gate", "mlp.gate_proj", "ffn_gate"),
    **_block("mlp.up", "mlp.up_proj", "ffn_up"),
    **_block("mlp.down", "mlp.down_proj", "ffn_down"),
    **norm_names("attention_norm", "input_layernorm", "attn_norm"),
    **norm_names("attention.query_norm", "self_attn.q_norm", "attn_q_norm"),
    **norm_names("attention.key_norm", "self_attn.k_norm", "attn_k_norm"),
}

#: Blocks with a norm before attention and one before the MLP.
PRE_NORM_NAMES = {
    **FRAME_NAMES,
    **PROJECTION_NAMES,
    **norm_names("mlp_norm", "post_attention_layernorm", "ffn_norm"),
}


#: Options that are null in every class of the reference if a configuration lacks them.
UNSAID = dict.fromkeys(
    (
        *("rope_scaling", "rope_parameters", "layer_types", "quantization_config"),
        *("num_key_value_heads", "head_dim"),
    )
)


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
      architectures: what `config.json` calls its models.
      model_types: what it calls their kind of configuration.
      gguf: what GGUF calls them.
      defaults: what the class of its configurations in transformers has for an option
        that a `config.json` lacks.
      gguf_defaults: what llama.cpp has for one that a GGUF file lacks, where it is
        not what it has for all.
      configure: the shape that a `Description` stands for.
      names: module path to the tensor's name in safetensors and in GGUF.
      stretched_context: whether configurations say how long texts may be after a
        linear scaling of positions.
      norm_offset: what safetensors leave out of the scale of a norm (Gemma: 1).
      gguf_interleaved: whether GGUF has the rows of queries and keys in the order of
        a rotation that pairs neighbours.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    gguf: tuple[str, ...]
    defaults: Mapping[str, Any]
    configure: Callable[[Description], DecoderConfig]
    names: dict[str, tuple[str, str]]
    gguf_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stretched_context: bool = False
    norm_offset: float = 0.0
    gguf_interleaved: bool = False

    def tensor_name(self, path: tuple, scheme: str) -> str:
        """What checkpoints call the parameter at `path` of the module.

        Args:
          path: keys from the module to the parameter; the layer is an int.
          scheme: "safetensors" or "gguf".
        """
        layer = next((str(key) for key in path if isinstance(key, int)), "")
        ours = ".".join("*" if isinstance(key, int) else str(key) for key in path)
        return self.names[ours][scheme == "gguf"].replace("*", layer)

    def stored_offset(self, path: tuple, scheme: str) -> float:
        """What a checkpoint leaves out of the parameter at `path`."""
        is_norm = path[-1] == "scale"
        return self.norm_offset if is_norm and scheme != "gguf" else 0.0
