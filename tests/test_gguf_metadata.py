"""What GGUF files leave out, say otherwise, or have in several files.

Each was tried on llama.cpp, whose logits are these models' to its half precision.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from test_checkpoints import same
from test_gguf import plain_tokens, write

import globalres_jax as gr
from globalres_jax.models.rope import Rope


def read(tmp_path, name, **keys):
    """The configuration of a golden model in a file that says these keys."""
    keys = {key.replace("__", "."): value for key, value in keys.items()}
    return gr.models.load(write(tmp_path / "m.gguf", name, keys=keys)).apply.config


def ropes(config):
    """The rotations of all layers."""
    return [layer.rope for layer in config.layers]


def windows(config):
    """The windows of all layers."""
    return [layer.window for layer in config.layers]


@pytest.fixture
def unread(monkeypatch):
    """Configurations alone are looked at, and no tensor is read."""
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *_: None)


@pytest.mark.usefixtures("unread")
def test_what_all_families_leave_out(tmp_path):
    whole = read(tmp_path, "llama2")
    for keys in (
        {"attention__head_count_kv": None},
        {"attention__key_length": None},
        {"rope__freq_base": None},
        {"rope__dimension_count": 8},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {"rope__scaling__type": "linear"},
        {"rope__scaling__factor": 0.0},
        {"attention__head_count": [4, 4, 4], "feed_forward_length": [48] * 3},
        # What the reference does not look at in this family.
        {"attention__sliding_window": 4, "attention__scale": 0.7},
        {"final_logit_softcapping": 3.0, "logit_scale": 3.0, "vocab_size": 50},
    ):
        assert read(tmp_path, "llama2", **keys) == whole, keys
    scaled = tuple(
        dataclasses.replace(layer, rope=Rope(1e4, 4.0)) for layer in whole.layers
    )
    wanted = dataclasses.replace(whole, layers=scaled)
    # Older files have another name for it.
    for key in ("rope__scaling__factor", "rope__scale_linear"):
        assert read(tmp_path, "llama2", **{key: 4.0}) == wanted
    both = ropes(read(tmp_path, "llama3", rope__scaling__factor=4.0))
    assert {rope.scale for rope in both} == {4.0} and both[0].factors is not None
    with pytest.raises(ValueError, match=r"lacks 'llama.attention.layer_norm_rms_eps"):
        read(tmp_path, "llama2", attention__layer_norm_rms_epsilon=None)
    with pytest.raises(ValueError, match=r"lacks 'llama.feed_forward_length'"):
        read(tmp_path, "llama2", feed_forward_length=None)


@pytest.mark.usefixtures("unread")
def test_what_gemma_2_leaves_out(tmp_path):
    """Files older than the caps have them all the same: 50 and 30."""
    whole = read(tmp_path, "gemma2")
    assert (whole.attention.cap, whole.logit_cap) == (50, 30)
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert read(tmp_path, "gemma2", **caps) == whole
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}
    other = read(tmp_path, "gemma2", **caps)
    assert (other.attention.cap, other.logit_cap) == (5, 4)
    other = read(tmp_path, "gemma2", attention__sliding_window=None)
    assert windows(other) == [4096, None]
    other = read(tmp_path, "gemma2", attention__sliding_window_pattern=[False, True])
    assert windows(other) == [None, 7]
    other = read(tmp_path, "gemma2", attention__sliding_window_pattern=3)
    assert windows(other) == [7, 7]
    with pytest.raises(ValueError, match=r"gemma2.rope.freq_base_swa must be 10000.0"):
        read(tmp_path, "gemma2", rope__freq_base_swa=100.0)


@pytest.mark.usefixtures("unread")
def test_what_gemma_3_leaves_out(tmp_path):
    whole, full = read(tmp_path, "gemma3"), Rope(1e6, 8.0)
    assert windows(whole) == [7] * 5 + [None] and ropes(whole) == [Rope(1e4)] * 5 + [
        full
    ]
    # Without a window no layer slides, and all rotate as those that do not.
    for none in (None, 0):
        other = read(tmp_path, "gemma3", attention__sliding_window=none)
        assert windows(other) == [None] * 6 and ropes(other) == [full] * 6
    other = read(tmp_path, "gemma3", attention__sliding_window_pattern=2)
    assert windows(other) == [7, None] * 3 and ropes(other) == [Rope(1e4), full] * 3
    pattern = [True, False] * 3
    assert read(tmp_path, "gemma3", attention__sliding_window_pattern=pattern) == other
    assert ropes(read(tmp_path, "gemma3", rope__freq_base_swa=100.0))[0] == Rope(100.0)
    assert ropes(read(tmp_path, "gemma3", rope__freq_base=None))[5] == Rope(1e4, 8.0)
    assert read(tmp_path, "gemma3", final_logit_softcapping=4.0).logit_cap == 4
    for unused in ({"final_logit_softcapping": 0.0}, {"attn_logit_softcapping": 1.0}):
        assert read(tmp_path, "gemma3", **unused) == whole


def test_biases_of_a_file_are_used_or_refused(tmp_path):
    """Each kind of its own, as it is there."""

    for kinds, seen in (
        (("attn_q", "attn_k", "attn_v"), (True, False, False)),
        (("attn_output",), (False, True, False)),
        (("ffn_gate", "ffn_up", "ffn_down"), (False, False, True)),
    ):
        config = gr.models.load(with_biases(tmp_path, kinds, range(3))).apply.config
        attention = config.attention
        assert (attention.qkv_bias, attention.out_bias, config.mlp_bias) == seen
    with pytest.raises(ValueError, match=r"unknown ones \[blk.1.attn_output.bias\]"):
        gr.models.load(with_biases(tmp_path, ("attn_output",), [1]))
    with pytest.raises(
        ValueError, match=r"lacks tensors \[blk.0.attn_k.bias, blk.0.at"
    ):
        gr.models.load(with_biases(tmp_path, ("attn_q",), range(3)))


def with_biases(tmp_path, kinds, layers):
    """A file of Llama 2 with biases of some projections."""
    sizes = {"ffn_gate": 48, "ffn_up": 48}

    def tokens(writer, vocab_size):
        plain_tokens(writer, vocab_size)
        for layer in layers:
            for kind in kinds:
                bias = np.full(sizes.get(kind, 32), 0.5, np.float32)
                writer.add_tensor(f"blk.{layer}.{kind}.bias", bias)

    return write(tmp_path / "m.gguf", "llama2", tokens=tokens)


def split(tmp_path, name="llama3"):
    """A golden model in several files, the first one first."""
    shutil.rmtree(tmp_path / "split", ignore_errors=True)
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "m.gguf", name, split_max_tensors=11)
    return sorted((tmp_path / "split").iterdir())


def test_a_model_in_several_files_is_read_whole(tmp_path):
    files = split(tmp_path)
    assert [file.name for file in files] == [
        f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)
    ]
    same(gr.models.load(files[0]), gr.models.load(write(tmp_path / "m.gguf", "llama3")))


def test_parts_of_a_model_are_named(tmp_path):
    files = split(tmp_path)
    with pytest.raises(ValueError, match=r"is part 2 of a model that was split into 3"):
        gr.models.load(files[1])
    shutil.copy(files[0], tmp_path / "other.gguf")
    with pytest.raises(
        ValueError, match=r"is part 1 .*; give the first, NAME-00001-of"
    ):
        gr.models.load(tmp_path / "other.gguf")
    shutil.copy(files[1], files[2])
    with pytest.raises(ValueError, match=r"is stored twice, the second time in part 3"):
        gr.models.load(files[0])
    files[2].unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: \[m-00003-of-00003.gguf\]"):
        gr.models.load(files[0])
    whole = files[1].read_bytes()
    files = split(tmp_path)
    files[1].write_bytes(whole[:-50])
    with pytest.raises(
        ValueError, match=r"m-00002-of-00003.gguf is no GGUF file, or t"
    ):
        gr.models.load(files[0])


def test_factors_of_rotations_belong_to_llama(tmp_path):
    """And there are as many as a head has pairs of features, all above zero."""
    factors = np.ones(4, np.float32)

    def tokens(writer, vocab_size):
        plain_tokens(writer, vocab_size)
        writer.add_tensor("rope_freqs.weight", factors)

    for name in ("gemma2", "qwen3"):
        with pytest.raises(ValueError, match=r"has unknown ones \[rope_freqs.weight\]"):
            gr.models.load(write(tmp_path / "m.gguf", name, tokens=tokens))
    for factors in (np.ones(3), np.zeros(4), np.full(4, np.nan), -np.ones(4)):
        factors = factors.astype(np.float32)
        with pytest.raises(ValueError, match=r"rope_freqs.weight must have 4 positive"):
            gr.models.load(write(tmp_path / "m.gguf", "llama2", tokens=tokens))


def test_layers_that_are_not_there_are_seen_before_any_is_built(tmp_path):
    for count in (4, 10**6, 2**31 - 1):
        path = write(tmp_path / "m.gguf", "llama2", keys={"block_count": count})
        with pytest.raises(
            ValueError, match=r"llama.block_count must be at most 3, of w"
        ):
            gr.models.load(path)
