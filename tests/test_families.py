"""Every family computes what the reference implementation computed (data/)."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loaded import CAPACITY, DATA, FAMILIES, LENGTH, apply, causal, golden, prefill

import globalres_jax as gr
from globalres_jax.models.description import Description
from globalres_jax.models.layers import dropout
from globalres_jax.models.llama import LLAMA
from globalres_jax.models.rope import Rope
from globalres_jax.models.rope_options import (
    context_length,
    rope,
    rope_of_full_layers,
    rope_of_sliding_layers,
)
from globalres_jax.models.saving import save
from globalres_jax.tree import paths, tree_mask


def test_all_families_are_here():
    assert len(FAMILIES) == 7
    shapes = {name: golden(name).model.apply for name in FAMILIES}
    assert len(set(shapes.values())) == 7


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_then_steps_equal_the_reference(name):
    model, tokens, wanted = golden(name)
    logits, cache = prefill(model, tokens)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    start = 5
    cache = cache.with_length(np.full(2, start, np.int32))
    for i in range(start, LENGTH):
        positions, mask = causal(1, i)
        logits, cache = apply(model, tokens[:, i : i + 1], positions, cache, mask)
        np.testing.assert_allclose(logits[:, 0], wanted[:, i], atol=1e-4)
    np.testing.assert_array_equal(cache.length, [LENGTH, LENGTH])


_keep_path = jax.jit(lambda cache, *path: cache.keep_path(*path))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tree_equals_each_of_its_paths_and_its_commit_the_text(name):
    """Rows of two lengths, far enough on that windows have closed behind them."""
    model, tokens, _ = golden(name)
    tree, base = paths(3, 2), np.array([12, 9], np.int32)
    _, cache = prefill(model, tokens)
    cache = cache.with_length(base)
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, model.vocab_size, (2, tree.num_nodes))

    # The tree goes through the program of a text: what is not a node sees nothing.
    spare = LENGTH - tree.num_nodes
    see = jax.jit(tree_mask, static_argnums=(0, 3))
    mask = see(tree, np.arange(tree.num_nodes), base, CAPACITY)
    together, cache = apply(
        model,
        np.pad(nodes, ((0, 0), (0, spare))),
        np.pad(
            base[:, None] + tree.depths[None].astype(np.int32), ((0, 0), (0, spare))
        ),
        cache,
        np.pad(mask, ((0, 0), (0, spare), (0, 0))),
    )
    together = np.asarray(together)
    for leaf in tree.levels[-1]:
        path = [0, int(tree.parents[leaf]), int(leaf)]
        texts = np.array(tokens)
        for row, start in enumerate(base):
            texts[row, start : start + 3] = nodes[row, path]
        alone, _ = prefill(model, texts)
        for row, start in enumerate(base):
            np.testing.assert_allclose(
                together[row, np.array(path)], alone[row, start : start + 3], atol=1e-4
            )

    # Row 0 accepts both tokens of the last path, row 1 none; then one more token.
    accepted = [[0, int(tree.parents[leaf]), int(leaf)], [0]]
    kept = np.array([accepted[0][1:], [0, 0]], np.int32)
    cache = _keep_path(cache, base, kept, np.array([3, 1], np.int32))
    np.testing.assert_array_equal(cache.length, base + np.array([3, 1]))
    length = np.asarray(cache.length)[:, None]
    mask = np.arange(CAPACITY)[None, None] <= length[:, None]
    more = np.array([[7], [8]])
    logits, _ = apply(model, more, length, cache, mask)
    texts = np.array(tokens)
    for row, path in enumerate(accepted):
        spoken = [*nodes[row, path], *more[row]]
        texts[row, base[row] : base[row] + len(spoken)] = spoken
    whole, _ = prefill(model, texts)
    for row, path in enumerate(accepted):
        wanted = whole[row, base[row] + len(path)]
        np.testing.assert_allclose(logits[row, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "qwen2"])
def test_bfloat16_is_near(name):
    _, tokens, wanted = golden(name)
    half = gr.models.load(DATA / name, dtype=jnp.bfloat16)
    assert {str(x.dtype) for x in jax.tree.leaves(half.params)} >= {"bfloat16"}
    logits, _ = prefill(half, tokens)
    assert logits.dtype == jnp.float32
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.1


def test_a_whole_text_is_scored_without_a_cache_of_the_callers():
    model, tokens, wanted = golden("gemma2")
    score = jax.jit(model.apply.score)
    np.testing.assert_allclose(score(model.params, tokens), wanted, atol=1e-4)


def test_dropout_keeps_the_mean_and_differs_between_calls():
    drop = dropout(0.25, jax.random.key(0))
    first, second = (np.asarray(drop(jnp.ones((64, 64)))) for _ in range(2))
    assert set(np.unique(first)) == {0, np.float32(1 / 0.75)}
    assert abs(first.mean() - 1) < 5 * np.sqrt(0.25 / 0.75) / 64
    assert (first != second).any()
    again = dropout(0.25, jax.random.key(0))
    np.testing.assert_array_equal(again(jnp.ones((64, 64))), first)


def assert_same(one, other):
    """The same program on the same parameters."""
    assert one.apply == other.apply and one.eos_id == other.eos_id
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    pairs = zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def family_of(name):
    kind = json.loads((DATA / name / "config.json").read_text("utf-8"))[
        "architectures"
    ][0]
    return next(f for f in gr.models.FAMILIES if kind in f.architectures)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_loads_as_it_was(name, tmp_path):
    options = json.loads((DATA / name / "config.json").read_text("utf-8"))
    for dtype in (jnp.float32, jnp.bfloat16):
        folder = tmp_path / str(jnp.dtype(dtype))
        model = gr.models.load(DATA / name, dtype)
        save(folder, family_of(name), options, model.params)
        assert_same(gr.models.load(folder, dtype), model)
    # Norms are float32 in memory, and only as exact as the file.
    save(tmp_path / "half", family_of(name), options, model.params, jnp.bfloat16)
    for leaf in jax.tree.leaves(gr.models.load(tmp_path / "half").params):
        assert leaf.dtype == jnp.float32


def test_drafting_layers_share_the_weights(tmp_path):
    target, draft = gr.models.load_pair(DATA / "qwen3", "layers:0,2")
    blocks = target.params["blocks"], draft.params["blocks"]
    assert len(blocks[1]) == 2
    ours, theirs = (jax.tree.leaves(part) for part in (blocks[0][2], blocks[1][1]))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    # They are the model whose checkpoint has these layers alone.
    options = json.loads((DATA / "qwen3" / "config.json").read_text("utf-8"))
    options |= {"num_hidden_layers": 2, "layer_types": options["layer_types"][:2]}
    save(tmp_path / "m", family_of("qwen3"), options, draft.params)
    assert_same(gr.models.load(tmp_path / "m"), draft)


def test_drafts_that_cannot_be_are_refused():
    for draft, message in {
        "layers:0-3": "layer 3 of a target whose layers are 0-2",
        "layers:": "names no layers",
        "layers:2,1": "must name layers in order",
        "no/such/folder": "is no folder",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            gr.models.load_pair(DATA / "qwen3", draft)
    with pytest.raises(ValueError, match="no layers of a target"):
        gr.models.pairs.keep_layers(golden("qwen3").model, ())
    bare = gr.testing.markov_model(jnp.full((3, 3), 1 / 3))
    with pytest.raises(ValueError, match="layers can be chosen of a target that `load"):
        gr.models.pairs.keep_layers(bare, (0,))


def broken(tmp_path, name="llama2", **changes):
    """A copy of a golden folder with another configuration."""
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DATA / name, folder)
    described = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(described | changes))
    return folder


def test_configurations_that_do_not_fit_are_refused(tmp_path):
    for changes, message in (
        ({"architectures": ["BertModel"]}, "'BertModel'; supported: LlamaForCausalLM"),
        (
            {"architectures": None, "model_type": None},
            "has architecture None; supported: LlamaForCausalLM, ",
        ),
        ({"num_hidden_layers": 4}, "num_hidden_layers must be at most 3, of which"),
        ({"num_hidden_layers": 2}, r"unknown ones \[model.layers.2.input_layernorm"),
        (
            {"intermediate_size": 50},
            r"layers.0.mlp.\w+.weight has shape \(.*the configuration needs",
        ),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported: 'silu'"),
        ({"hidden_size": None}, "hidden_size must be a whole number .*; got null"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2}},
            "rope scaling 'yarn' is not supported",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            gr.models.load(broken(tmp_path, **changes))


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="source: 'nowhere' is no folder"):
        gr.models.load("nowhere")
    folder = broken(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for part in (whole[:-100], whole[:50], b"", b"\xff" * 200):
        weights.write_bytes(part)
        with pytest.raises(
            ValueError, match=r"model.safetensors is unreadable or trunc"
        ):
            gr.models.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors in"):
        gr.models.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        gr.models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        gr.models.load(folder)
    folder = broken(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        gr.models.load(folder)
    folder = broken(tmp_path, "llama3")
    (folder / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model-00002-of-00006.safetensors"):
        gr.models.load(folder)


def test_the_context_is_what_the_checkpoint_says(tmp_path):
    assert gr.models.load("embedded").context_length is None
    pair = gr.models.load_pair(DATA / "llama3", "layers:0-1")
    assert [model.context_length for model in pair] == [64, 64]
    # Only a linear stretch is not in the number yet, and in Gemma 3's it is.
    linear = {"rope_type": "linear", "factor": 4.0}
    options = json.loads((DATA / "llama3" / "config.json").read_text("utf-8"))
    for changes, length in (
        ({"max_position_embeddings": None}, None),
        ({"rope_parameters": linear}, 256),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"} | linear}, 256),
    ):
        described = Description(options | changes, "test", LLAMA.defaults)
        assert context_length(described, stretched=False) == length
    assert golden("gemma3").model.context_length == 64


def test_older_configurations_mean_the_same():
    """`rope_theta` and `rope_scaling`, as before transformers 5."""
    for name in ("llama3", "gemma3"):
        options = json.loads((DATA / name / "config.json").read_text("utf-8"))
        defaults = family_of(name).defaults
        new = Description(options, "new", defaults)
        whole = options["rope_parameters"]
        whole = whole.get("full_attention", whole)
        old = {k: v for k, v in options.items() if k != "rope_parameters"}
        old["rope_theta"] = whole["rope_theta"]
        old["rope_scaling"] = {k: v for k, v in whole.items() if k != "rope_theta"}
        old = Description(old, "old", defaults)
        if name == "gemma3":
            assert rope_of_sliding_layers(old) == rope_of_sliding_layers(new)
        read = rope_of_full_layers if name == "gemma3" else rope
        assert read(old) == read(new)
        frequencies = read(new).frequencies(8)
        assert (frequencies[1:] < Rope(1e4).frequencies(8)[1:]).any()
