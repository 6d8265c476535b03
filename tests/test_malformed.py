"""Malformed metadata: a ValueError that names the option, before anything is built."""

import json
import os

import jax
import pytest
from loaded import DATA, FAMILIES

import globalres_jax as gr

NAN, INF = float("nan"), float("inf")
DEEP = [[[[[[[[[[[[1]]]]]]]]]]]]
#: What no option may be.
NEVER = ([], {}, "x", "", -1, NAN, INF, -INF, DEEP, {"a": [1]}, [1, 2], 10**400, b"")
NEVER = NEVER[:-1]
SIZE = (*NEVER, None, True, 0, 2.5, "8", 10**12)
NUMBER = (*NEVER, None, True, 0, "1e-6", 1e31)
FLAG = (*NEVER, None, 0, 1, "true")
NULLABLE_SIZE = tuple(value for value in SIZE if value is not None)
NULLABLE_NUMBER = tuple(value for value in NUMBER if value is not None)
OBJECT = ("x", 3, True, [1], -1, NAN, DEEP)

#: Options that every family has, and values that they may not have.
COMMON = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": (*SIZE, 10**9, 2**31 - 1, 10**6),
    "num_attention_heads": SIZE,
    "num_key_value_heads": (*NULLABLE_SIZE, 3),
    "rms_norm_eps": (*NUMBER, 1, 2.0, 1e-320),
    "max_position_embeddings": NULLABLE_SIZE,
    "tie_word_embeddings": FLAG,
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
    "eos_token_id": (-1, 97, 1.5, "2", True, NAN, [2, 97], [None], DEEP, {}, 10**30),
    "architectures": (5, "LlamaForCausalLM", [5], [None], True, {}, DEEP, ["X"]),
    "model_type": (5, [], {}, True, DEEP, NAN),
    "quantization_config": (5, {"quant_method": "fp8"}, "gptq", [1]),
}
ACTIVATION = (*NEVER, None, True, 0, "relu", ["silu"])
KINDS = (5, "full_attention", [], ["full_attention"], [5] * 3, {}, DEEP, True)
#: Options of some families.
OWN = {
    "llama2": {
        "hidden_act": ACTIVATION,
        "attention_bias": FLAG,
        "mlp_bias": FLAG,
        "head_dim": (*NULLABLE_SIZE, 7),
        "sliding_window": NULLABLE_SIZE,
        "partial_rotary_factor": (0.5, "x", [], {}, NAN),
    },
    "mistral": {"sliding_window": NULLABLE_SIZE, "hidden_act": ACTIVATION},
    "qwen2": {
        "use_sliding_window": FLAG,
        "sliding_window": NULLABLE_SIZE,
        "max_window_layers": [x for x in SIZE if x != 0],
        "layer_types": (*KINDS, ["sliding_attention"] * 3),
    },
    "qwen3": {"attention_bias": FLAG, "head_dim": (*NULLABLE_SIZE, 7)},
    "gemma2": {
        "hidden_activation": ACTIVATION,
        "query_pre_attn_scalar": NUMBER,
        "attn_logit_softcapping": NULLABLE_NUMBER,
        "final_logit_softcapping": NULLABLE_NUMBER,
        "sliding_window": SIZE,
        "layer_types": KINDS,
        "use_bidirectional_attention": (True, 1, "x", [1]),
    },
    "gemma3": {
        "sliding_window": SIZE,
        "sliding_window_pattern": SIZE,
        "rope_parameters": (*OBJECT, {"rope_type": "linear", "factor": 2.0}),
    },
}
#: Parts of `rope_scaling` for each of its kinds.
SCALING = {
    "linear": {"factor": (*NUMBER, 1e-9, 1e9), "rope_theta": (*NUMBER, 1)},
    "llama3": {
        "factor": NUMBER,
        "low_freq_factor": [x for x in NUMBER if x != 0],
        "high_freq_factor": (*NUMBER, 1.0),
        "original_max_position_embeddings": NULLABLE_SIZE,
    },
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 16


def link(folder, name):
    """A folder with the golden tensors of a family, and its options."""
    folder.mkdir()
    for file in (DATA / name).glob("*.safetensors*"):
        os.symlink(file, folder / file.name)
    return json.loads((DATA / name / "config.json").read_text("utf-8"))


def refused(folder, options, name, value):
    """Holds that a folder of these options is refused for the one of a name."""
    (folder / "config.json").write_text(json.dumps(options))
    try:
        gr.models.load(folder)
    except ValueError as error:
        text = str(error)
        assert text.startswith("source: ") and len(text) < 700, (name, value, text)
        known = "architecture" if name == "architectures" else name
        assert known in text, (name, value, text)
    else:
        raise AssertionError(f"{name} = {value!r} is taken")


@pytest.mark.parametrize("name", FAMILIES)
def test_options_of_a_folder(name, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "make_array_from_callback", None)  # nothing is read
    options, tried = link(tmp_path / "m", name), 0
    for option, values in (COMMON | OWN.get(name, {})).items():
        for value in values:
            refused(tmp_path / "m", options | {option: value}, option, value)
            tried += 1
    assert tried > 150


@pytest.mark.parametrize("kind", SCALING)
def test_scaling_of_positions(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "make_array_from_callback", None)
    options = link(tmp_path / "m", "llama2")
    del options["rope_parameters"]
    whole = {"rope_type": kind, **(LLAMA3 if kind == "llama3" else {"factor": 2.0})}
    for option, values in SCALING[kind].items():
        if option in whole and option != "original_max_position_embeddings":
            less = {k: v for k, v in whole.items() if k != option}
            refused(tmp_path / "m", options | {"rope_scaling": less}, option, "absent")
        for value in values:
            changed = {"rope_scaling": whole | {option: value}}
            refused(tmp_path / "m", options | changed, option, value)
    for value in ("yarn", "dynamic", "longrope", 5, None, [], {}, True):
        for word in ("rope_type", "type"):
            refused(
                tmp_path / "m", options | {"rope_scaling": {word: value}}, word, value
            )


def test_parts_of_a_model_of_text_and_images(tmp_path):
    options = link(tmp_path / "m", "gemma3")
    whole = {"model_type": "gemma3", "text_config": options}
    for option, values in {"hidden_size": SIZE, "sliding_window": SIZE}.items():
        for value in values:
            text = {"text_config": options | {option: value}}
            refused(tmp_path / "m", whole | text, option, value)
    for value in OBJECT:
        refused(tmp_path / "m", whole | {"text_config": value}, "text_config", value)
    # Without one, all is as the reference's class has it, which is another model.
    for value in (None, {}):
        refused(tmp_path / "m", whole | {"text_config": value}, "got 26", value)


def test_sources_that_are_neither_names_nor_paths():
    for value in (None, 5, [], {}, b"x"):
        with pytest.raises(ValueError, match="source: must be a name or a path; got "):
            gr.models.load(value)


def test_what_generation_ends_at(tmp_path):
    options = link(tmp_path / "m", "llama2")
    (tmp_path / "m" / "config.json").write_text(json.dumps(options))
    place = tmp_path / "m" / "generation_config.json"
    for value in COMMON["eos_token_id"]:
        place.write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id"):
            gr.models.load(tmp_path / "m")
    for text in ("[]", "5", "{", '{"a":' * 5000, "[" * 200_000, "\xff"):
        place.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"generation_config.json is no JSON"):
            gr.models.load(tmp_path / "m")
    place.write_text('{"eos_token_id": [3, 5]}')
    assert gr.models.load(tmp_path / "m").eos_id == (3, 5)


def test_tokenizers_that_are_none(tmp_path):
    """Merges that make no token, at which the library panics, among them."""
    options = link(tmp_path / "m", "llama2")
    (tmp_path / "m" / "config.json").write_text(json.dumps(options))
    place = tmp_path / "m" / "tokenizer.json"
    vocab = {"a": 0, "b": 1, "é": 2, "aé": 3}
    for model in (
        {"merges": ["a b"]},
        {"merges": ["a"]},
        {"merges": ["a x"]},
        {"merges": [["a", "b", "é"]]},
        {"merges": 5},
        {"merges": [5]},
        {"merges": [], "vocab": {"a": -1}},
        {"merges": [], "vocab": ["a"]},
        {"merges": ["a é"], "continuing_subword_prefix": "#"},
        {"merges": ["a é"], "continuing_subword_prefix": 5},
        {"merges": [[], None], "continuing_subword_prefix": "#"},
        {"type": "x"},
    ):
        definition = {"model": {"type": "BPE", "vocab": vocab} | model}
        for text in (json.dumps({"version": "1.0"} | definition), '{"model":'):
            place.write_text(text)
            with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer: "):
                gr.models.load(tmp_path / "m")
