"""Folders and files that hold more, less or other tensors than they say."""

import json
import os

import jax
import numpy as np
import pytest
from loaded import DATA, golden, prefill
from safetensors.numpy import load_file, save_file

import globalres_jax as gr
from globalres_jax.models.rope import Rope

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def parts(name):
    """The golden tensors and options of a family."""
    tensors = {}
    for file in sorted((DATA / name).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors, json.loads((DATA / name / "config.json").read_text("utf-8"))


def folder(path, tensors, options):
    """Writes a folder with these."""
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(options))
    return path


def indexed(path, files, options, **index):
    """Writes a folder in parts: name of a file to its tensors."""
    path.mkdir(exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, path / name)
    places = {key: name for name, tensors in files.items() for key in tensors}
    (path / INDEX).write_text(json.dumps({"weight_map": places} | index))
    (path / "config.json").write_text(json.dumps(options))
    return path


def same(one, other):
    """Whether two models are the same program on the same numbers."""
    assert one.apply == other.apply
    pairs = zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_a_head_beside_a_tied_embedding_is_used(tmp_path):
    """As transformers, which has made the logits (`make_golden.py`), uses it."""
    tensors, options = parts("llama3")
    assert options["tie_word_embeddings"] and HEAD not in tensors
    with np.load(DATA / "llama3" / "own_head.npz") as file:
        arrays = dict(file)
    own = folder(tmp_path / "own", tensors | {HEAD: arrays["head"]}, options)
    model = gr.models.load(own)
    assert not model.apply.config.tied
    np.testing.assert_array_equal(model.params["head"]["weight"], arrays["head"])
    logits, _ = prefill(model, golden("llama3").tokens)
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)
    assert np.abs(logits - golden("llama3").logits).max() > 1


def test_a_head_that_repeats_the_embedding_or_stands_for_it_is_tied(tmp_path):
    tensors, options = parts("llama3")
    repeated = tensors | {HEAD: tensors[EMBEDDING].copy()}
    model = gr.models.load(folder(tmp_path / "m", repeated, options))
    same(model, golden("llama3").model)
    alone = {name: x for name, x in repeated.items() if name != EMBEDDING}
    same(gr.models.load(folder(tmp_path / "m", alone, options)), model)
    for wrong in (repeated[HEAD][:-1], repeated[HEAD][:, :-1], np.float32(1)):
        broken = repeated | {HEAD: np.ascontiguousarray(wrong)}
        with pytest.raises(ValueError, match=r"tensor lm_head.weight has shape"):
            gr.models.load(folder(tmp_path / "m", broken, options))
    del repeated[HEAD], repeated[EMBEDDING]
    with pytest.raises(
        ValueError, match=r"lacks tensors \[model.embed_tokens.weight\]"
    ):
        gr.models.load(folder(tmp_path / "m", repeated, options))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.self_attn.o_proj.bias",
        "model.layers.1.mlp.up_proj.bias",
        "model.layers.1.mlp.gate_proj.weight_scale",
        "model.layers.0.self_attn.q_norm.weight",
        "model.norm.bias",
        "lm_head.bias",
        "model.embed_positions.weight",
        "model.vision_tower.x",
        "vision_tower.x",
        "model.inv_freq_of_ours.weight",
        "score.weight",
        "base_model.model.layers.0.lora_A.weight",
    ],
)
def test_a_tensor_that_is_not_used_is_an_error(name, tmp_path):
    tensors, options = parts("llama2")
    more = tensors | {name: np.zeros(32, np.float32)}
    for said in ({}, {"attention_bias": False, "tie_word_embeddings": False}):
        with pytest.raises(ValueError, match=rf"has unknown ones \[{name}\]"):
            gr.models.load(folder(tmp_path / "m", more, options | said))


def test_tensors_that_are_known_to_be_no_part_are_left_out(tmp_path):
    tensors, options = parts("llama2")
    buffer = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)
        for layer in range(3)
    }
    model = gr.models.load(folder(tmp_path / "m", tensors | buffer, options))
    same(model, golden("llama2").model)


def test_biases_that_are_there_are_used(tmp_path):
    """Families have those that their reference has; others are refused."""
    for name, taken in {
        "llama2": True,
        "qwen3": True,
        "gemma2": True,
        "mistral": 0,
    }.items():
        tensors, options = parts(name)
        biases = {
            key.replace("weight", "bias"): np.full(x.shape[0], 0.5, x.dtype)
            for key, x in tensors.items()
            if "_proj" in key and "self_attn" in key
        }
        options["attention_bias"] = True
        place = folder(tmp_path / name, tensors | biases, options)
        if taken:
            block = gr.models.load(place).params["blocks"][0]["attention"]
            for layer in ("query", "key", "value", "out"):
                assert (np.asarray(block[layer]["bias"]) == 0.5).all()
        else:
            with pytest.raises(ValueError, match=r"unknown ones .*k_proj.bias"):
                gr.models.load(place)


def test_a_model_type_stands_for_an_architecture(tmp_path):
    for name in ("llama2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"):
        tensors, options = parts(name)
        if name == "qwen2":  # stored in bfloat16, which this library cannot write
            continue
        del options["architectures"]
        model = gr.models.load(folder(tmp_path / name, tensors, options))
        same(model, golden(name).model)
    tensors, options = parts("llama2")
    for changes, message in (
        ({"model_type": "gpt2"}, "has model_type 'gpt2'; supported: llama, mistral"),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
            "architectures says 'LlamaForCausalLM', but model_type says 'mistral'",
        ),
    ):
        changed = {k: v for k, v in options.items() if k != "architectures"} | changes
        with pytest.raises(ValueError, match=message):
            gr.models.load(folder(tmp_path / "m", tensors, changed))


def test_the_text_part_of_a_model_of_text_and_images(tmp_path):
    """Laid out as Gemma 3 4B: nearly all is left to the class of its text part."""
    rng = np.random.default_rng(0)
    wide = {"q_proj": (2048, 32), "k_proj": (1024, 32), "v_proj": (1024, 32)}
    wide |= {"o_proj": (32, 2048)}
    shapes = {f"self_attn.{name}": shape for name, shape in wide.items()}
    shapes |= {f"mlp.{name}_proj": (48, 32) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj": (32, 48), "self_attn.q_norm": (256,)}
    shapes |= {"self_attn.k_norm": (256,), "input_layernorm": (32,)}
    for name in ("post_attention", "pre_feedforward", "post_feedforward"):
        shapes[f"{name}_layernorm"] = (32,)
    shapes = {f"layers.{i}.{n}": shape for i in (0, 1) for n, shape in shapes.items()}
    shapes |= {"embed_tokens": (97, 32), "norm": (32,)}
    tensors = {
        f"language_model.model.{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    beside = {"vision_tower.x": np.zeros(1, np.float32)}
    beside["multi_modal_projector.y"] = np.zeros(1, np.float32)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"vocab_size": 97, "model_type": "gemma3_text", "sliding_window": 7}
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    options = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 96],
        "text_config": text,
        "hidden_size": 99,  # of the whole, which has none
    }
    model = gr.models.load(folder(tmp_path / "m", tensors | beside, options))
    config = model.apply.config
    assert model.eos_id == (1, 96) and model.context_length == 131_072
    assert config.tied and config.embedding_scale == 32**0.5
    shape = config.attention
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (8, 4, 256)
    assert shape.scale == 256**-0.5 and shape.cap is config.logit_cap is None
    assert {(x.rope, x.window) for x in config.layers} == {(Rope(1e4), 7)}
    np.testing.assert_array_equal(
        model.params["norm"]["scale"], tensors["language_model.model.norm.weight"] + 1
    )
    # Newer files, and one that has both names of a tensor.
    newer = {
        name.replace("language_model.model.", "model.language_model."): x
        for name, x in tensors.items()
    }
    same(gr.models.load(folder(tmp_path / "m", newer, options)), model)
    lead = "language_model.model.norm.weight"
    both = newer | {lead: tensors[lead]}
    message = r"tensor model.norm.weight is stored twice, as .* and "
    with pytest.raises(ValueError, match=message):
        gr.models.load(folder(tmp_path / "m", both, options))


def raw(path, kinds):
    """Writes a file of one element for each name, of the type given."""
    sizes = {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1, "I16": 2}
    sizes |= {"I32": 4, "I64": 8, "F32": 4}
    header, end = {}, 0
    for name, kind in kinds.items():
        span = [end, end + sizes[kind]]
        header[name] = {"dtype": kind, "shape": [1], "data_offsets": span}
        end = span[1]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL", "I32"])
def test_a_type_that_is_not_supported_is_named(kind, tmp_path):
    _, options = parts("llama2")
    place = folder(tmp_path / "m", {}, options)
    raw(place / "model.safetensors", {"model.norm.weight": "F32", "odd.weight": kind})
    message = rf"has tensors \[odd.weight\] of type {kind}, which is not supported; sup"
    with pytest.raises(ValueError, match=message):
        gr.models.load(place)
    options["quantization_config"] = {"quant_method": "fp8"}
    (place / "config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=f"{kind}.*; quantization_config says 'fp8'"):
        gr.models.load(place)
    raw(place / "model.safetensors", {"model.norm.weight": "F32"})
    with pytest.raises(ValueError, match="is quantised, which is not supported; quant"):
        gr.models.load(place)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", ".."),
        *("/x.safetensors", "C:\\x.safetensors", "C:x.safetensors", "\\\\a\\b\\x"),
        "ABSOLUTE",
    ],
)
def test_an_index_stays_in_its_folder(name, tmp_path):
    tensors, options = parts("llama2")
    place = indexed(tmp_path / "m", {"a.safetensors": tensors}, options)
    gr.models.load(place)
    os.rename(place / "a.safetensors", tmp_path / "x.safetensors")
    name = str(tmp_path / "x.safetensors") if name == "ABSOLUTE" else name
    (place / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(ValueError, match="which is outside its folder"):
        gr.models.load(place)


def test_indices_that_are_none(tmp_path):
    tensors, options = parts("llama2")
    files = {"a.safetensors": tensors}
    for index in (None, 5, [], "x", {"a": 5}, {"a": None}, {"a": ["x"]}, {"a": {}}):
        place = indexed(tmp_path / "m", files, options, weight_map=index)
        with pytest.raises(ValueError, match="weight_map must map names of tensors to"):
            gr.models.load(place)
    for index in ({}, {"a": "none"}, {"a": ""}, {"a": "a.safetensors\0"}):
        place = indexed(tmp_path / "m", files, options, weight_map=index)
        with pytest.raises(FileNotFoundError, match=r"^source: no "):
            gr.models.load(place)


def test_files_of_a_cache_lie_elsewhere(tmp_path):
    """The hub's cache has links to files that lie beside its snapshots."""
    tensors, options = parts("llama2")
    names = sorted(tensors)
    halves = [{n: tensors[n] for n in names[i::2]} for i in (0, 1)]
    files = {f"model-0000{i + 1}-of-00002.safetensors": halves[i] for i in (0, 1)}
    blobs = indexed(tmp_path / "blobs", files, options)
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        os.symlink(os.path.relpath(file, snapshot), snapshot / file.name)
    same(gr.models.load(snapshot), golden("llama2").model)
    # In parts in a folder within, too.
    within = indexed(tmp_path / "w", {}, options)
    os.symlink(blobs, within / "parts")
    places = {name: f"parts/{file}" for file, half in files.items() for name in half}
    (within / INDEX).write_text(json.dumps({"weight_map": places}))
    same(gr.models.load(within), golden("llama2").model)


def test_a_tensor_that_is_stored_twice_is_refused(tmp_path):
    tensors, options = parts("llama2")
    norm = {"model.norm.weight": tensors["model.norm.weight"]}
    files = {"a.safetensors": tensors, "b.safetensors": norm}
    with pytest.raises(ValueError, match=r"tensor model.norm.weight is stored twice"):
        gr.models.load(indexed(tmp_path / "m", files, options))


def test_a_whole_file_is_read_before_parts(tmp_path):
    """As transformers does where both are there."""
    tensors, options = parts("llama2")
    other = {name: x + 1 for name, x in tensors.items()}
    place = indexed(tmp_path / "m", {"a.safetensors": other}, options)
    same(gr.models.load(folder(place, tensors, options)), golden("llama2").model)
