"""The transformer, its cache, and checkpoints that load exactly or not at all."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from globalres_jax.models.checkpoint import num_bytes, save_checkpoint
from globalres_jax.models.transformer import (
    Transformer,
    TransformerConfig,
    TransformerFn,
)

import globalres_jax as gr
from globalres_jax import models
from globalres_jax.base import Model
from globalres_jax.cache import commit
from globalres_jax.tree import tree_mask

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = TransformerConfig(
    vocab_size=11,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
)


@pytest.fixture(scope="module")
def tiny() -> Model:
    module = Transformer(CONFIG, rngs=nnx.Rngs(0))
    # Larger embeddings than at the start of training, so that tokens differ.
    module.embedding.embedding[...] = jax.random.normal(jax.random.key(1), (11, 16))
    function = TransformerFn(CONFIG)
    return Model(nnx.state(module), function, function.init_cache, 11)


def scores(model: Model, text: list[int]) -> np.ndarray:
    """Logits [L, V] of a text from a fresh cache."""
    length = len(text)
    logits, _ = model.apply(
        model.params,
        jnp.array([text]),
        jnp.arange(length)[None],
        model.init_cache(1, length),
        jnp.tril(jnp.ones((length, length), bool))[None],
    )
    return np.asarray(logits[0])


def test_training_and_cached_passes_agree(tiny):
    text = [1, 5, 3, 9, 2, 2]
    module = Transformer(CONFIG, rngs=nnx.Rngs(0))
    nnx.update(module, tiny.params)
    np.testing.assert_allclose(
        module.score(jnp.array([text]))[0], scores(tiny, text), atol=1e-5
    )


def test_step_by_step_equals_one_pass(tiny):
    text = [1, 5, 3, 9, 2, 2]
    whole, cache = scores(tiny, text), tiny.init_cache(1, 8)
    for i, token in enumerate(text):
        mask = (jnp.arange(8) <= i)[None, None]
        logits, cache = tiny.apply(
            tiny.params, jnp.array([[token]]), jnp.array([[i]]), cache, mask
        )
        np.testing.assert_allclose(logits[0, 0], whole[i], atol=1e-5)
    assert int(cache.length[0]) == 6


def test_tree_scores_equal_each_path_alone_and_commit_equals_prefill(tiny):
    tree, prompts = gr.paths(2, 2), [[4, 7, 1], [3, 3, 8, 6, 5]]
    nodes = jnp.array([[2, 5, 6, 9, 0], [10, 1, 1, 4, 7]])
    base, capacity = jnp.array([3, 5]), 14
    cache = tiny.init_cache(2, capacity)
    padded = jnp.array([[*prompts[0], 0, 0], prompts[1]])
    causal = jnp.arange(capacity)[None, None] <= jnp.arange(5)[None, :, None]
    _, cache = tiny.apply(
        tiny.params,
        padded,
        jnp.broadcast_to(jnp.arange(5)[None], (2, 5)),
        cache,
        jnp.broadcast_to(causal, (2, 5, capacity)),
    )
    cache = cache._replace(length=base)
    logits, cache = tiny.apply(
        tiny.params,
        nodes,
        base[:, None] + jnp.asarray(tree.depths)[None],
        cache,
        tree_mask(tree, np.arange(5), base, capacity),
    )
    for row in range(2):
        for leaf in (3, 4):
            path = [0, int(tree.parents[leaf]), leaf]
            text = prompts[row] + [int(nodes[row, v]) for v in path]
            np.testing.assert_allclose(
                logits[row, jnp.array(path)], scores(tiny, text)[-3:], atol=1e-5
            )

    # Row 0 accepts both tokens of path 1, row 1 none: the next token sees just that.
    cache = commit(cache, base, jnp.array([[2, 4], [0, 0]]), jnp.array([2, 0]))
    np.testing.assert_array_equal(cache.length, [6, 6])
    mask = jnp.arange(capacity)[None, None] <= cache.length[:, None, None]
    logits, _ = tiny.apply(
        tiny.params, jnp.array([[3], [9]]), cache.length[:, None], cache, mask
    )
    texts = [[*prompts[0], 2, 6, 0, 3], [*prompts[1], 10, 9]]
    for row, text in enumerate(texts):
        np.testing.assert_allclose(logits[row, 0], scores(tiny, text)[-1], atol=1e-5)


def test_checkpoint_round_trip(tiny, tmp_path):
    save_checkpoint(tmp_path / "m", CONFIG, tiny.params, jnp.float32)
    loaded = models.load(tmp_path / "m")
    assert loaded.tokenizer is None and loaded.vocab_size == 11
    text = [1, 5, 3]
    np.testing.assert_array_equal(scores(loaded, text), scores(tiny, text))
    half = models.load(tmp_path / "m", dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}


def test_broken_checkpoints_are_refused(tiny, tmp_path):
    good = tmp_path / "good"
    save_checkpoint(good, CONFIG, tiny.params, jnp.float32)

    def broken(name):
        return shutil.copytree(good, tmp_path / name)

    with pytest.raises(FileNotFoundError, match="source: 'nowhere' is no folder"):
        models.load("nowhere")
    folder = broken("truncated")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="unreadable or truncated"):
        models.load(folder)
    weights.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match="unreadable or truncated"):
        models.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        models.load(folder)

    folder = broken("misshapen")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mlp_width": 25}))
    with pytest.raises(ValueError, match=r"has shape \(24, 16\), the config needs"):
        models.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks tensors \['blocks.2.attention"):
        models.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "rnn"}))
    with pytest.raises(ValueError, match="'rnn'; supported: 'transformer'"):
        models.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"colour": 3}))
    with pytest.raises(ValueError, match="does not fit"):
        models.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        models.load(folder)
    folder = broken("tokenizer")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        models.load(folder)


def test_embedded_pair():
    target, draft = models.load("embedded"), models.load("embedded-draft")
    size = sum(x.size for x in jax.tree.leaves(target.params))
    assert 5_000_000 <= size <= 12_000_000
    assert 10 <= num_bytes(target.params) / num_bytes(draft.params) <= 20
    text = "ROMEO:\nWhat light through yonder window breaks?\nÆ"
    tokens = target.tokenizer.encode(text)
    assert target.tokenizer.decode(tokens) == text
    assert target.tokenizer == draft.tokenizer
    assert target.vocab_size == draft.vocab_size == target.tokenizer.vocab_size
    # Shakespeare is likelier than the same words in another order.
    speech = target.tokenizer.encode("KING RICHARD III:\nWhat say you to my lord?")

    def likelihood(text):
        logits = jax.nn.log_softmax(scores(target, text))
        return float(np.mean([logits[i, t] for i, t in enumerate(text[1:])]))

    assert likelihood(speech) > -4
    assert likelihood(speech) > likelihood(speech[::-1]) + 2


def test_a_mesh_replicates_the_parameters():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    model = models.load("embedded-draft", mesh=mesh)
    leaf = jax.tree.leaves(model.params)[0]
    assert leaf.sharding.is_fully_replicated


def test_a_model_loaded_twice_is_the_same_program():
    first, second = (models.load("embedded") for _ in range(2))
    structures = [jax.tree.structure(model) for model in (first, second)]
    assert structures[0] == structures[1]
    assert hash(structures[0]) == hash(structures[1])
