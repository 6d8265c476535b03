"""Malformed GGUF files: a ValueError that names the key, before anything is built."""

import functools

import gguf
import jax
import numpy as np
import pytest
from test_gguf import WRITTEN, write
from test_malformed import FLAG, NEVER, NULLABLE_NUMBER, NULLABLE_SIZE

import globalres_jax as gr
from globalres_jax.models import gguf_file
from globalres_jax.models.gguf_file import GGUFFile

SIZE, NUMBER = NULLABLE_SIZE, NULLABLE_NUMBER
FLAG = [value for value in FLAG if value is not None]
#: Keys that all files have, after the family's name, and values they may not have.
KEYS = {
    "block_count": (*SIZE, 10**6, 10**9, 2**32 - 1),
    "embedding_length": SIZE,
    "feed_forward_length": (*SIZE, [48, 48, 49]),
    "attention.head_count": (*SIZE, [4, 4, 2]),
    "attention.head_count_kv": (*SIZE, 3),
    "attention.key_length": (*SIZE, 7),
    "attention.value_length": SIZE,
    "attention.layer_norm_rms_epsilon": (*NUMBER, 1),
    "rope.freq_base": NUMBER,
    "rope.dimension_count": SIZE,
    "rope.scaling.type": ("yarn", "longrope", "x", 5, True, [], ["linear"]),
    "rope.scaling.factor": [value for value in NUMBER if value != 0],
    "rope.scaling.attn_factor": (2.0, "x", NAN := float("nan"), []),
    "context_length": SIZE,
    "attention.causal": (False, "x", []),
    "expert_count": (8, "x", []),
}
GEMMA = {
    "attention.sliding_window": [value for value in SIZE if value != 0],
    "attention.sliding_window_pattern": (*SIZE, [True], [1, 2, 3]),
    "final_logit_softcapping": [value for value in NUMBER if value != 0],
}
TOKEN = (*NEVER, True, 2.5, "8", 97, 10**12)
LISTED = ("x", 5, True, [1], [None] * 97, {}, [NAN] * 97, ["a"])
TOKENIZER = {
    "tokens": (*LISTED, [], ["a"] * 97, [f"<{i}>" for i in range(96)]),
    "token_type": LISTED,
    "model": (5, "bert", [], True, ["gpt2"]),
    "pre": (5, "klingon", [], True),
    "merges": ("x", 5, ["ab"], [" "], ["a "], [5], [["a", "b"]], ["<1> nowhere"]),
    "bos_token_id": TOKEN,
    "eos_token_id": TOKEN,
    "eot_token_id": TOKEN,
    "eom_token_id": TOKEN,
    "add_bos_token": FLAG,
    "add_eos_token": FLAG,
    "chat_template": (5, [], ["x"], True),
}


@pytest.fixture
def lies(monkeypatch):
    """What a file says of some keys instead of what is in it."""
    told, metadata, keys = {}, GGUFFile.metadata, GGUFFile.keys
    monkeypatch.setattr(gguf_file, "_open", functools.cache(gguf_file._open))

    def told_first(self, key, default=None):
        return told[key] if key in told else metadata(self, key, default)

    monkeypatch.setattr(GGUFFile, "metadata", told_first)
    monkeypatch.setattr(GGUFFile, "keys", lambda self: {*keys(self), *told})
    monkeypatch.setattr(jax, "make_array_from_callback", None)  # nothing is read
    return told


@pytest.mark.parametrize("name", ["llama2", "gemma2", "gemma3"])
def test_keys_of_a_model(name, tmp_path, lies):
    file, family = write(tmp_path / "m.gguf", name), WRITTEN[name]
    keys = KEYS | (GEMMA if "gemma" in name else {})
    for key, values in keys.items():
        for value in values:
            lies.clear()
            lies[f"{family}.{key}"] = value
            with pytest.raises(ValueError, match=r"^source: ") as caught:
                gr.models.load(file)
            known = ("shape", key, "general.architecture")
            assert any(word in str(caught.value) for word in known), (key, value)
            assert len(str(caught.value)) < 700


def test_keys_of_a_tokenizer(tmp_path, lies):
    file = write(tmp_path / "m.gguf", "llama2")
    for key, values in TOKENIZER.items():
        for value in values:
            lies.clear()
            lies[f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"] = value
            with pytest.raises(ValueError, match=r"^source: ") as caught:
                gr.models.load(file)
            known = (key, "cuts words", "of kind", "is no tokenizer", "no tokenizer")
            assert any(word in str(caught.value) for word in known), (key, value)
    lies.clear()
    lies |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": 1}
    with pytest.raises(ValueError, match=r"tokenizer.ggml.add_space_prefix must be tr"):
        gr.models.load(file)
    for key, values in {"scores": LISTED, "unknown_token_id": TOKEN}.items():
        for value in values:
            lies.clear()
            lies |= {"tokenizer.ggml.model": "llama", f"tokenizer.ggml.{key}": value}
            with pytest.raises(ValueError, match=f"tokenizer.ggml.{key} must be"):
                gr.models.load(file)
    for value in (5, [], True, ["llama"]):
        lies.clear()
        lies["general.architecture"] = value
        with pytest.raises(ValueError, match=r"general.architecture must be a name"):
            gr.models.load(file)


def test_parts(tmp_path, lies):
    file = write(tmp_path / "m.gguf", "llama2")
    for value in (*NEVER, 2.5, "8", 2, 10**12):
        for key in ("split.count", "split.no"):
            lies.clear()
            lies |= {"split.count": 2, key: value}
            if value == -1 and key == "split.count":
                continue
            with pytest.raises(ValueError, match=r"split.*whole numb|was split into"):
                gr.models.load(file)
    lies.clear()
    lies["split.tensors.count"] = 5
    with pytest.raises(ValueError, match=r"have 30 tensors; split.tensors.count says"):
        gr.models.load(file)


def test_bytes_that_differ_are_no_other_error(tmp_path, monkeypatch):
    """Any byte of the header wrong: the file is refused, or is another model."""
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *_: None)
    file = write(tmp_path / "m.gguf", "llama2")
    whole = bytearray(file.read_bytes())
    header = whole.index(b"token_embd.weight") + 300
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        broken = whole.copy()
        for place in rng.integers(0, header, rng.integers(1, 4)):
            broken[place] = rng.choice([0, 255, rng.integers(256)])
        file.write_bytes(broken)
        try:
            gr.models.load(file)
        except (ValueError, FileNotFoundError) as error:
            assert str(error).startswith("source: "), error
            refused += 1
    assert refused > 40


def test_arrays_within_arrays_and_keys_that_are_there_twice_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    # Magic, version, no tensors, one key.
    whole = (tmp_path / "m.gguf").read_bytes()
    start, first = whole[:16], whole[24:]
    array = np.uint32(9).tobytes() + np.uint64(1).tobytes()
    deep = np.uint64(1).tobytes() + b"x" + np.uint32(9).tobytes() + array * 100_000
    for second, message in ((deep, "recursion"), (first, "is there twice")):
        parts = (start, np.uint64(2).tobytes(), first, second)
        (tmp_path / "m.gguf").write_bytes(b"".join(parts))
        with pytest.raises(ValueError, match=f"is no GGUF file, or trunc.*{message}"):
            gr.models.load(tmp_path / "m.gguf")
