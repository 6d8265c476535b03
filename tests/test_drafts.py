"""Drafts made for a target: what they share with it, and their folders."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from draft_cases import target
from loaded import DATA, embedded, golden
from safetensors.numpy import load_file, save_file

import globalres_jax as gr
from globalres_jax.commands.loading import load_measured
from globalres_jax.drafters import FeatureDrafter, ModelDrafter
from globalres_jax.models import drafts
from globalres_jax.models.drafts import shipped

IDS = np.arange(900, 20, -7)
CONFIG = drafts.DraftConfig(
    kind="feature", ids=IDS, hidden_size=8, num_heads=1, mlp_width=8
)
CARD = {"steps": 3, "acceptance": {"1": 0.5}}


@functools.cache
def parameters():
    return drafts.init_draft(jax.random.key(0), CONFIG, embedded()[0])


@pytest.fixture
def folder(tmp_path):
    drafts.save_draft(tmp_path / "d", CONFIG, parameters(), CARD, embedded()[0])
    return tmp_path / "d"


@functools.cache
def said_by(name):
    """A target, tokens [2, L], its logits."""
    if name != "one layer":
        return golden(name)
    tokens = np.array([[1, 0, 3, 2], [2, 4, 0, 0]])
    return target(), tokens, jax.jit(target().apply.score)(target().params, tokens)


#: Of them Gemma has a scaled embedding and capped logits.
TARGETS = ["one layer", pytest.param("gemma2", marks=pytest.mark.sweep)]


@pytest.mark.parametrize("name", TARGETS)
def test_features_hold_what_the_target_says(name):
    model, tokens, wanted = said_by(name)
    lengths, ids = np.array([tokens.shape[1], 3]), np.array([4, 0, 2])
    read = functools.partial(drafts.target_features, model)
    features, total = map(np.asarray, jax.jit(read)(tokens, lengths))
    logits = np.asarray(drafts.head_logits(model, features, ids))
    sums = scipy.special.logsumexp(wanted, axis=-1)
    for row, length in enumerate(lengths):
        ours, theirs = logits[row, :length], wanted[row, :length][:, ids]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        np.testing.assert_allclose(total[row, :length], sums[row, :length], atol=1e-4)
    assert not np.any(features[1, 3:]) and not np.any(total[1, 3:])


@pytest.mark.parametrize("name", TARGETS)
def test_layers_begin_as_the_target_s(name):
    """All layers of a target, untrained, say what the target says."""
    model, tokens, wanted = said_by(name)
    count, ids = len(model.apply.config.layers), np.array([4, 0, 2])
    config = drafts.DraftConfig(kind="layers", ids=ids, num_layers=count)
    params = drafts.init_draft(jax.random.key(0), config, model)
    logits = jax.jit(drafts.draft_logits, static_argnums=1)(
        params, config, model, tokens
    )
    np.testing.assert_allclose(logits, wanted[..., ids], atol=1e-4)


def test_a_folder_gives_back_what_was_saved(folder):
    model = embedded()[0]
    stored = drafts.read_draft(folder, model)
    assert stored.config == CONFIG and stored.card == CARD
    pairs = zip(*map(jax.tree.leaves, (stored.params, parameters())), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)
    assert jax.tree.structure(stored.params) == jax.tree.structure(parameters())
    # What the target has is not stored again.
    size = (folder / "model.safetensors").stat().st_size
    assert size < 4 * sum(x.size for x in jax.tree.leaves(parameters())) + 4000
    drafts.save_draft(folder, CONFIG, parameters(), {}, dtype=jnp.bfloat16)
    half = drafts.read_draft(folder, model)
    assert (folder / "model.safetensors").stat().st_size < 0.75 * size
    assert half.card == {} and jax.tree.leaves(half.params)[0].dtype == jnp.float32


def test_a_pair_by_folder_or_by_name(folder, monkeypatch):
    model, drafter = gr.models.load_pair("embedded", folder, np.float32)
    assert isinstance(drafter, FeatureDrafter)
    weights, theirs = drafter.model.params, model.params["embedding"]["weight"][...]
    assert weights.embedding is theirs
    np.testing.assert_array_equal(weights.head, theirs[IDS])
    again = gr.models.load_pair("embedded", folder)[1]
    assert jax.tree.structure(again) == jax.tree.structure(drafter)

    assert folder.name not in drafts.shipped_drafts()
    with pytest.raises(FileNotFoundError, match="'d' is no folder"):
        gr.models.load_pair("embedded", "d")
    monkeypatch.setattr(shipped, "_SHIPPED", folder.parent)
    assert drafts.shipped_drafts() == {"d": folder}
    model, drafter, loading = load_measured("embedded", "d", np.float32)
    assert isinstance(drafter, FeatureDrafter)
    # The embedding once.
    leaves = {id(x): x.nbytes for x in jax.tree.leaves((model, drafter))}
    assert loading.parameter_bytes == sum(leaves.values())
    own = sum(x.nbytes for x in jax.tree.leaves((weights.own, weights.head)))
    only = sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert sum(leaves.values()) == only + own + drafter.ids.nbytes


def test_what_is_no_draft_is_refused(folder, tmp_path):
    model = embedded()[0]
    plain = DATA / "llama2"
    assert drafts.is_draft(folder) and not drafts.is_draft(plain)
    assert not drafts.is_draft(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"draft: no such folder: .*nowhere"):
        drafts.load_draft(tmp_path / "nowhere", model)
    with pytest.raises(ValueError, match=r"holds no draft: .* model_type \W?llama"):
        drafts.load_draft(plain, model)
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        drafts.load_draft(tmp_path, model)
    with pytest.raises(ValueError, match="holds a draft, which is no model without"):
        gr.models.load(folder)
    bare = gr.testing.markov_model(jnp.full((3, 3), 1 / 3))
    with pytest.raises(ValueError, match="target: drafts are made for models that `lo"):
        drafts.load_draft(folder, bare)
    (folder / "config.json").write_text("{")
    assert not drafts.is_draft(folder)
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        drafts.load_draft(folder, model)


def test_folders_that_do_not_fit_are_refused(folder, tmp_path):
    model, path = embedded()[0], folder / "config.json"
    said = json.loads(path.read_text("utf-8"))
    for changes, message in (
        ({"kind": "wide"}, "kind: must be one of embedding, layers, feature; got 'wi"),
        ({"num_layers": None}, "num_layers: must be a whole number, got None"),
        ({"num_layers": 2}, r"lacks tensors \[blocks.1.attention.key.weight"),
        ({"hidden_size": 16}, r"tensor \S+ has shape \(.*\), this target needs \("),
        ({"bias": False}, r"unknown ones \[bias\]"),
        ({"target": {"vocab_size": 9}}, r"a target of 9 tokens \(vocab_size\), and th"),
        ({"target": {"hidden_size": 9}}, r"a target of 9 features \(hidden_size\)"),
        ({"target": {"vocabulary": "0"}}, "made for a target of another vocabulary"),
    ):
        path.write_text(json.dumps(said | changes))
        with pytest.raises(ValueError, match=message) as caught:
            drafts.load_draft(folder, model)
        assert str(folder) in str(caught.value)
    path.write_text(json.dumps(said | {"target": None}))
    with pytest.raises(ValueError, match="ids: token 900 of a target whose tokens are"):
        drafts.load_draft(folder, golden("gemma2").model)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["ids"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"lacks tensors \[ids\]"):
        drafts.load_draft(folder, model)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="is unreadable or truncated"):
        drafts.load_draft(folder, model)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        drafts.load_draft(folder, model)
    shutil.rmtree(folder)


def test_shapes_that_cannot_be_are_refused():
    model = golden("gemma2").model
    make = functools.partial(drafts.DraftConfig, kind="feature", ids=[1, 2])
    for options, message in (
        ({"kind": "tree"}, "kind: must be one of embedding, layers, feature"),
        ({"ids": [1, 1]}, "ids: a token is there twice"),
        ({"ids": [-1]}, "ids: -1 is no token"),
        ({"ids": []}, r"ids: expected token ids of shape \[N\]"),
        ({"num_layers": 0}, "num_layers: must be at least 1, got 0"),
        ({"hidden_size": 8.5}, "hidden_size: must be a whole number, got 8.5"),
        ({"kind": "layers", "num_heads": 2}, "num_heads: layers of the target have it"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    for options, message in (
        ({"ids": [9999]}, "ids: token 9999 of a target whose tokens are 0-"),
        ({"kind": "layers", "num_layers": 99}, "num_layers: 99 of a target that has"),
        ({"num_heads": 2, "num_kv_heads": 3}, "num_kv_heads: must divide 2 heads"),
        ({"hidden_size": 9, "num_heads": 3}, "head_dim: must be even"),
    ):
        with pytest.raises(ValueError, match=message):
            drafts.init_draft(jax.random.key(0), make(**options), model)
    tokens = np.zeros((1, 2), np.int32)
    with pytest.raises(ValueError, match="of kind 'feature' needs them"):
        drafts.draft_logits(parameters(), CONFIG, embedded()[0], tokens)


def test_other_tokens_are_never_drafted():
    """A draft over some tokens, of a target that says any: the text is the target's."""
    table = np.random.default_rng(0).dirichlet(np.ones(4), 4).astype(np.float32)
    model = gr.testing.markov_model(jnp.asarray(table))
    ids = jnp.array([3, 0, 1])

    def over_some(params, *arguments):
        logits, cache = model.apply(params, *arguments)
        return logits[..., ids], cache

    drafter = ModelDrafter(dataclasses.replace(model, apply=over_some), ids)
    rows, rule = 2000, gr.tree_verifiers.TopDown(gr.verifiers.SingleDraft())
    config = gr.SpeculativeConfig(tree=gr.tree.chain(1), verifier=rule, draft_top_k=2)
    prompts = np.full((rows, 1), 2)
    arguments = model, drafter, prompts, np.ones(rows, int), config, 2
    result = gr.generate(jax.random.key(1), *arguments)
    tokens = np.asarray(result.tokens)
    assert 2 not in tokens[np.asarray(result.from_draft)] and 2 in tokens
    law = table[2][:, None] * table
    seen = np.zeros((4, 4))
    np.add.at(seen, tuple(tokens.T), 1 / rows)
    assert np.all(np.abs(seen - law) < 5 * np.sqrt(law / rows))
