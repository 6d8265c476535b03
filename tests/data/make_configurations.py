"""Makes `configurations.json`: what the reference makes of partial configurations.

    pip install torch transformers
    python tests/data/make_configurations.py

Each has the options of a `config.json` and the shape that transformers' model of them
has. The tests need neither package.
"""

import copy
import json
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LINEAR = dict(rope_type="linear", factor=4.0)
OLD_LINEAR = dict(type="linear", factor=2.0)
BOTH = dict(
    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=5e5),
    sliding_attention=dict(rope_type="linear", factor=2.0),
)
SMALL = dict(
    hidden_size=64, num_attention_heads=8, num_hidden_layers=4, intermediate_size=96
)
GEMMA_4B = dict(
    architectures=["Gemma3ForConditionalGeneration"],
    eos_token_id=[1, 106],
    text_config=dict(
        hidden_size=2560,
        intermediate_size=10240,
        model_type="gemma3_text",
        num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window=1024,
    ),
)
KINDS = ["full_attention", "sliding_attention"] * 2

#: Options of each `model_type`: alone, and with parts of them said.
CASES = {
    "llama": [
        {},
        SMALL,
        SMALL | dict(num_key_value_heads=2, head_dim=16, rope_theta=5e5),
        SMALL | dict(head_dim=None, num_key_value_heads=None),
        SMALL | dict(attention_bias=True),
        SMALL | dict(mlp_bias=True, hidden_act="swish", rms_norm_eps=1e-5),
        SMALL | dict(rope_scaling=OLD_LINEAR, rope_theta=1e6),
        SMALL | dict(rope_parameters=LINEAR, rope_theta=1e6),
        SMALL | dict(rope_parameters=LINEAR | dict(rope_theta=300.0)),
        SMALL | dict(rope_scaling=OLD_LINEAR, rope_parameters=LLAMA3),
        SMALL | dict(rope_scaling=LLAMA3, max_position_embeddings=64),
        SMALL
        | dict(
            rope_scaling=LLAMA3 | dict(original_max_position_embeddings=16),
            max_position_embeddings=64,
        ),
        SMALL | dict(rope_scaling=LLAMA3, original_max_position_embeddings=32),
        SMALL | dict(layer_types=["full_attention"] * 4, eos_token_id=[5, 6]),
        SMALL | dict(sliding_window=7, tie_word_embeddings=True),
    ],
    "mistral": [
        {},
        SMALL,
        SMALL | dict(sliding_window=None),
        SMALL | dict(attention_bias=True, mlp_bias=True, sliding_window=7),
    ],
    "qwen2": [
        {},
        dict(hidden_size=2048),
        SMALL | dict(num_key_value_heads=2),
        SMALL | dict(num_key_value_heads=2, head_dim=16, attention_bias=False),
        SMALL | dict(num_key_value_heads=None, use_sliding_window=True),
        SMALL
        | dict(
            num_key_value_heads=2,
            use_sliding_window=True,
            max_window_layers=1,
            sliding_window=9,
        ),
        SMALL
        | dict(
            num_key_value_heads=2,
            use_sliding_window=True,
            max_window_layers=0,
            sliding_window=None,
        ),
        SMALL | dict(num_key_value_heads=2, use_sliding_window=True, layer_types=KINDS),
    ],
    "qwen3": [
        {},
        SMALL | dict(num_key_value_heads=2),
        SMALL | dict(num_key_value_heads=2, attention_bias=True, head_dim=32),
        SMALL | dict(num_key_value_heads=None, rope_scaling=LINEAR),
    ],
    "gemma2": [
        {},
        SMALL,
        SMALL | dict(attn_logit_softcapping=None, final_logit_softcapping=None),
        SMALL | dict(head_dim=8, num_key_value_heads=8, query_pre_attn_scalar=144),
        SMALL | dict(layer_types=KINDS, sliding_window=9, attention_bias=True),
        SMALL | dict(sliding_window_pattern=3, hidden_act="gelu"),
        SMALL | dict(rope_scaling=LINEAR, tie_word_embeddings=False),
    ],
    "gemma3_text": [
        {},
        SMALL,
        SMALL | dict(num_hidden_layers=7, rope_scaling=LINEAR),
        SMALL | dict(sliding_window_pattern=2, rope_theta=7e5),
        SMALL | dict(num_hidden_layers=6, rope_local_base_freq=3e3),
        SMALL | dict(layer_types=KINDS, rope_parameters=BOTH, rope_theta=9e5),
        SMALL | dict(layer_types=KINDS, rope_parameters=BOTH, rope_scaling=LINEAR),
        SMALL | dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    ],
    "gemma3": [
        {},
        GEMMA_4B,
        GEMMA_4B | dict(tie_word_embeddings=False, hidden_size=99, vocab_size=5),
        dict(text_config=SMALL | dict(tie_word_embeddings=False), head_dim=99),
        dict(text_config=None),
    ],
}


def frequencies(rotary: torch.nn.Module, kind: str) -> list[float]:
    """Some of a rotation's radians a position, the last ones among them."""
    name = "inv_freq" if hasattr(rotary, "inv_freq") else f"{kind}_inv_freq"
    found = getattr(rotary, name)
    half = len(found)
    return [float(found[i]) for i in (0, 1, half // 2, half - 2, half - 1)]


def shape(kind: str, options: dict) -> dict:
    """What the reference's model of these options is."""
    config = transformers.AutoConfig.for_model(kind, **copy.deepcopy(options))
    text = config.get_text_config()
    text._attn_implementation = "eager"
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(text)
    rotary = type(model.model.rotary_emb)(text)
    block = model.model.layers[0]
    attention, norm = block.self_attn, block.input_layernorm
    windows = [
        text.sliding_window
        if kind == "mistral"
        else getattr(layer.self_attn, "sliding_window", None)
        for layer in model.model.layers
    ]
    full, sliding = "full_attention", "sliding_attention"
    kinds = getattr(text, "layer_types", None) or [full]
    return {
        "vocab_size": model.lm_head.weight.shape[0],
        "width": model.lm_head.weight.shape[1],
        "query": attention.q_proj.weight.shape[0],
        "key": attention.k_proj.weight.shape[0],
        "head_dim": attention.head_dim,
        "mlp_width": block.mlp.gate_proj.weight.shape[0],
        "biases": [
            attention.q_proj.bias is not None,
            attention.o_proj.bias is not None,
            block.mlp.up_proj.bias is not None,
        ],
        "scale": attention.scaling,
        # Gemma 3 has the option, and no use for it.
        "cap": text.attn_logit_softcapping if kind == "gemma2" else None,
        "logit_cap": getattr(text, "final_logit_softcapping", None),
        "eps": getattr(norm, "variance_epsilon", getattr(norm, "eps", None)),
        "tied": config.tie_word_embeddings,
        "windows": windows,
        "full": frequencies(rotary, full) if full in kinds else None,
        "sliding": frequencies(rotary, sliding) if sliding in kinds else None,
        "max_position_embeddings": text.max_position_embeddings,
        "eos": getattr(config, "eos_token_id", None) or text.eos_token_id,
    }


def main() -> None:
    found = [
        {"options": {"model_type": kind, **options}, "shape": shape(kind, options)}
        for kind, cases in CASES.items()
        for options in cases
    ]
    (HERE / "configurations.json").write_text(
        "[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n"
    )
    print(len(found), "configurations")


if __name__ == "__main__":
    main()
