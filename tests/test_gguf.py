"""GGUF files: written here by the `gguf` package from the golden checkpoints."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
from loaded import DATA, golden, prefill
from safetensors.numpy import load_file

import globalres_jax as gr
from globalres_jax.models.gguf_file import SUPPORTED_TYPES, GGUFFile
from globalres_jax.models.rope import llama3_factors

TYPES = gguf.GGMLQuantizationType
#: Golden folder: architecture in GGUF.
WRITTEN = {
    "llama2": "llama",
    "llama3": "llama",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
}
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FRAME = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name, gemma):
    """What converters call a tensor of a safetensors file."""
    if name in FRAME:
        return FRAME[name]
    _, _, layer, *rest = name.split(".")
    names = LAYER | (GEMMA_NORMS if gemma else NORMS)
    return f"blk.{layer}.{names['.'.join(rest[:-1])]}.{rest[-1]}"


def write(path, name, quantise=None, tokens=None, edit=None, drop=(), keys=None, **how):
    """Writes the golden checkpoint `name` as converters do.

    `keys` are other values of metadata by their names in the family, None for none;
    `how` are options of the package's writer.
    """
    folder, architecture = DATA / name, WRITTEN[name]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(path, architecture, **how)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    whole = rope.get("full_attention", rope)
    writer.add_rope_freq_base(whole["rope_theta"])
    if whole["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
    if "gemma" in architecture:
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    (tokens or plain_tokens)(writer, config["vocab_size"])
    for key, value in (keys or {}).items():
        writer.kv_data[0].pop(f"{architecture}.{key}", None)
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(f"{architecture}.{key}", value, kind)
    if whole["rope_type"] == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        names = (*names, "original_max_position_embeddings")
        factors = llama3_factors(
            whole["rope_theta"], config["head_dim"], *(whole[n] for n in names)
        )
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    for key, tensor in tensors.items():
        if key in drop:
            continue
        if architecture == "llama" and ("q_proj" in key or "k_proj" in key):
            pairs = (-1, 2, config["head_dim"] // 2, tensor.shape[1])
            tensor = tensor.reshape(pairs).swapaxes(1, 2).reshape(tensor.shape)
        if "gemma" in architecture and "norm" in key:
            tensor = tensor + 1
        tensor = np.ascontiguousarray(tensor, np.float32)
        if edit is not None:
            tensor = edit(key, tensor)
        kind = TYPES.F32
        if quantise is not None and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind, tensor = quantise, gguf.quants.quantize(tensor, quantise)
        writer.add_tensor(
            gguf_name(key, "gemma" in architecture), tensor, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain_tokens(writer, vocab_size):
    """Bytes as far as they go: enough to load."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = [f"<{i}>" for i in range(vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    writer.add_token_merges([])
    writer.add_eos_token_id(2)


def assert_same_parameters(one, other):
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    pairs = zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_computes_what_its_folder_does(name, tmp_path):
    model, tokens, wanted = golden(name)
    file = gr.models.load(write(tmp_path / "m.gguf", name))
    assert file.eos_id == (2,)
    assert file.context_length == model.context_length == 64
    assert_same_parameters(file, model)
    function = file.apply
    if "gemma" in name:
        # The scale of queries follows from the size, as the file cannot say; the
        # golden ones have one of their own.
        attention = function.config.attention
        assert attention.scale == attention.head_dim**-0.5
        scale = model.apply.config.attention.scale
        attention = dataclasses.replace(attention, scale=scale)
        config = dataclasses.replace(function.config, attention=attention)
        function = dataclasses.replace(function, config=config)
    if name == "llama3":
        # The file has its own list of what frequencies are divided by.
        assert function != model.apply
        logits, _ = prefill(dataclasses.replace(file, apply=function), tokens)
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    else:
        # The same program; tests of the families hold it to the reference.
        assert function == model.apply


def test_quantised_weights_are_near(tmp_path):
    _, tokens, wanted = golden("llama2")
    # Loud random weights let errors grow; half the bits, ten times the error.
    most = {"F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.06, "Q5_1": 0.35}
    for kind in (*most, "Q4_1", "Q4_0"):
        file = write(tmp_path / "m.gguf", "llama2", quantise=TYPES[kind])
        logits, _ = prefill(gr.models.load(file), tokens)
        error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
        assert 0 < error < most.get(kind, 0.7), kind


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", SUPPORTED_TYPES)
def test_rows_are_those_of_the_whole_tensor(kind, tmp_path):
    """Any bytes stand for some weights; read in parts they are the same."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    width = 512 // block * size
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (6, width), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    stored = raw
    if kind in ("F32", "F16"):
        stored = raw.view(np.dtype("float" + kind[1:]))
        writer.add_tensor("x", stored)
    else:
        writer.add_tensor("x", raw, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.shape("x") == (6, 512)
    whole = gguf.quants.dequantize(stored, TYPES[kind])
    np.testing.assert_array_equal(file.read("x", 0, 6), whole)
    np.testing.assert_array_equal(file.read("x", 2, 5), whole[2:5])


def test_metadata_are_what_the_package_reads(tmp_path):
    write(tmp_path / "m.gguf", "llama3")
    ours = GGUFFile(tmp_path / "m.gguf")
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    assert len(theirs.fields) > 15
    for key, field in theirs.fields.items():
        assert ours.metadata(key) == field.contents(), key


def test_broken_files_are_refused(tmp_path):
    file = write(tmp_path / "m.gguf", "llama2")
    whole = file.read_bytes()
    for part in (whole[:-100], whole[:3000], whole[:20], b"", b"GGUF" + b"\xff" * 99):
        file.write_bytes(part)
        with pytest.raises(ValueError, match="is no GGUF file, or truncated"):
            gr.models.load(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        gr.models.load(tmp_path / "none.gguf")


def test_files_that_do_not_fit_are_refused(tmp_path):
    file = tmp_path / "m.gguf"
    lost = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=r"lacks tensors \[blk.1.ffn_up.weight\]"):
        gr.models.load(write(file, "llama2", drop=(lost,)))

    def cut(key, tensor):
        return tensor[:-1] if key == lost else tensor

    with pytest.raises(
        ValueError, match=r"shape \(47, 32\), the configuration needs \(48"
    ):
        gr.models.load(write(file, "llama2", edit=cut))

    def no_tokens(writer, vocab_size):
        pass

    with pytest.raises(ValueError, match="has no tokenizer"):
        gr.models.load(write(file, "llama2", tokens=no_tokens))

    def other_kind(writer, vocab_size):
        plain_tokens(writer, vocab_size)
        writer.kv_data[-1]["tokenizer.ggml.model"].value = "bert"

    with pytest.raises(ValueError, match="a tokenizer of kind 'bert'; supported: gpt2"):
        gr.models.load(write(file, "llama2", tokens=other_kind))

    writer = gguf.GGUFWriter(file, "mamba")
    plain_tokens(writer, 4)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba'; supported: llama, "):
        gr.models.load(file)


def test_a_type_that_is_not_supported_is_named(tmp_path):
    kind = TYPES.IQ4_NL
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", np.zeros((2, 32 // block * size), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="tensor x has type IQ4_NL, which is not supp"):
        GGUFFile(tmp_path / "m.gguf").read("x", 0, 2)
