"""Every family computes what the reference implementation computed (data/)."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from globalres_jax.models.description import Description

import globalres_jax as gr
from globalres_jax.tree import tree_mask

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parent / "data"
FAMILIES = sorted(path.parent.name for path in DATA.glob("*/golden.npz"))
LENGTH, CAPACITY = 24, 32


@pytest.fixture(params=FAMILIES, scope="module")
def golden(request):
    """(model, tokens [2, 24], logits [2, 24, V])."""
    folder = DATA / request.param
    arrays = np.load(folder / "golden.npz")
    return gr.models.load(folder), arrays["tokens"], arrays["logits"]


def apply(model, tokens, positions, cache, mask):
    """The model's function, compiled."""
    return jax.jit(model.apply)(model.params, tokens, positions, cache, mask)


def causal(first, count):
    """[2, count, CAPACITY] for tokens that stand at `first` and after."""
    rows = first + jnp.arange(count)
    mask = jnp.arange(CAPACITY)[None, :] <= rows[:, None]
    return jnp.broadcast_to(mask[None], (2, count, CAPACITY))


def places(first, count):
    return jnp.broadcast_to(first + jnp.arange(count)[None], (2, count))


def test_all_families_are_here():
    assert len(FAMILIES) == 7


def test_prefill_then_steps_equal_the_reference(golden):
    model, tokens, wanted = golden
    cache = model.init_cache(2, CAPACITY)
    logits, _ = apply(model, tokens, places(0, LENGTH), cache, causal(0, LENGTH))
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    start = 5
    logits, cache = apply(
        model, tokens[:, :start], places(0, start), cache, causal(0, start)
    )
    np.testing.assert_allclose(logits, wanted[:, :start], atol=1e-4)
    for i in range(start, LENGTH):
        logits, cache = apply(
            model, tokens[:, i : i + 1], places(i, 1), cache, causal(i, 1)
        )
        np.testing.assert_allclose(logits[:, 0], wanted[:, i], atol=1e-4)


def test_a_tree_equals_each_of_its_paths(golden):
    """Far enough into the text that windows have closed behind it."""
    model, tokens, _ = golden
    tree, base = gr.TokenTree((2, 2)), 12
    cache = model.init_cache(2, CAPACITY)
    _, committed = apply(
        model, tokens[:, :base], places(0, base), cache, causal(0, base)
    )
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, model.vocab_size, (2, tree.num_nodes))
    start = jnp.full(2, base)
    mask = tree_mask(tree, np.arange(tree.num_nodes), start, CAPACITY)
    positions = jnp.broadcast_to(base + jnp.asarray(tree.depths)[None], nodes.shape)
    together, _ = apply(model, nodes, positions, committed, mask)
    for leaf in tree.levels[-1]:
        path = [0, int(tree.parents[leaf]), int(leaf)]
        alone, _ = apply(
            model, nodes[:, path], places(base, 3), committed, causal(base, 3)
        )
        np.testing.assert_allclose(together[:, path], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "qwen2", "llama3"])
def test_bfloat16_is_near(name):
    golden = np.load(DATA / name / "golden.npz")
    tokens, wanted = golden["tokens"], golden["logits"]
    half = gr.models.load(DATA / name, dtype=jnp.bfloat16)
    assert {str(x.dtype) for x in jax.tree.leaves(half.params)} >= {"bfloat16"}
    cache = half.init_cache(2, CAPACITY)
    logits, _ = apply(half, tokens, places(0, LENGTH), cache, causal(0, LENGTH))
    assert logits.dtype == jnp.float32
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.1


def test_drafting_layers_share_the_weights():
    target, draft = gr.models.load_pair(DATA / "qwen3", "layers:0,2")
    blocks = target.params["blocks"], draft.params["blocks"]
    assert len(blocks[1]) == 2
    ours, theirs = (jax.tree.leaves(part) for part in (blocks[0][2], blocks[1][1]))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    prompts, lengths = jnp.array([[5, 6, 7, 8]]), jnp.array([4])
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=3, temperature=0)
    spoken = gr.generate(jax.random.key(0), target, draft, prompts, lengths, config, 12)
    plain = gr.generate(jax.random.key(0), target, None, prompts, lengths, config, 12)
    np.testing.assert_array_equal(spoken.tokens, plain.tokens)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("layers:0-3", "layer 3 of a target whose layers are 0-2"),
        ("layers:", "names no layers"),
        ("layers:2,1", "must name layers in order"),
        ("no/such/folder", "is no folder"),
    ],
)
def test_drafts_that_cannot_be_are_refused(draft, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gr.models.load_pair(DATA / "qwen3", draft)


def broken(tmp_path, name="llama2", **changes):
    """A copy of a golden folder with another configuration."""
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DATA / name, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["BertModel"]},
            "'BertModel'; supported: LlamaForCausalLM, ",
        ),
        ({"num_hidden_layers": 4}, r"lacks tensors \[model.layers.3.input_layernorm"),
        ({"num_hidden_layers": 2}, r"unknown ones \[model.layers.2.input_layernorm"),
        (
            {"intermediate_size": 50},
            r"layers.0.mlp.\w+.weight has shape \(.*the configuration needs",
        ),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported: 'silu'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2}},
            "rope scaling 'yarn' is not supported",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        gr.models.load(broken(tmp_path, **changes))


def test_broken_folders_are_refused(tmp_path):
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
    folder = broken(tmp_path, "llama3")
    (folder / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model-00002-of-00006.safetensors"):
        gr.models.load(folder)


def test_older_configurations_mean_the_same():
    """`rope_theta` and `rope_scaling`, as before transformers 5."""
    for name in ("llama3", "gemma3"):
        options = json.loads((DATA / name / "config.json").read_text())
        new = Description(options, "new")
        rope = options["rope_parameters"]
        whole = rope.get("full_attention", rope)
        old = {k: v for k, v in options.items() if k != "rope_parameters"}
        old["rope_theta"] = whole["rope_theta"]
        old["rope_scaling"] = {k: v for k, v in whole.items() if k != "rope_theta"}
        old = Description(old, "old")
        assert old.rope() == new.rope() and old.local_rope() == new.local_rope()
        frequencies = new.rope().frequencies(8)
        assert (frequencies[1:] < gr.models.layers.Rope(1e4).frequencies(8)[1:]).any()


def python(script: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """A process of its own, which sees as many devices as it is told."""
    options = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(DATA), *arguments],
        env={**os.environ, **options},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=540)
    assert process.returncode == 0, errors[-3000:]
    return out


SCRIPT = """
import sys, json, jax, jax.numpy as jnp, numpy as np
data, number, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if port != "0":
    jax.distributed.initialize(f"localhost:{port}", 2, number)
import globalres_jax as gr
from globalres_jax import sharding

mesh = None
if jax.device_count() > 1:
    mesh = sharding.make_mesh(data=2)
    assert dict(mesh.shape) == {"data": 2, "model": jax.device_count() // 2}
if port == "0" and mesh is not None:
    # Rows of a batch, a half of them on each part of the mesh.
    p, q = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 4, 12)))
    solve = lambda p, q: gr.solve_transport(p, gr.IID(q, 3))
    spread = jax.jit(sharding.spread_vmap(mesh, solve))
    plan = spread(*sharding.place_rows(mesh, (p, q)))
    assert plan.weights.addressable_shards[0].data.shape == (2, 12)
    for ours, theirs in zip(plan, jax.vmap(solve)(p, q)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    try:
        spread(p[:3], q[:3])
    except ValueError as error:
        assert "3 rows" in str(error) and "2 devices" in str(error), error
    else:
        raise AssertionError("3 rows were split over 2 parts")
target, draft = gr.models.load_pair(f"{data}/qwen2", "layers:0-1", mesh=mesh)
weight = target.params["blocks"][0]["attention"]["query"]["weight"]
if mesh is not None:
    shard = weight[...].addressable_shards[0].data.shape
    assert shard[0] * mesh.shape["model"] == weight.shape[0], shard
prompts = jnp.array([[3, 4, 5, 6], [9, 8, 0, 0]], jnp.int32)
config = gr.SpeculativeConfig(num_drafts=2, draft_length=1)
result = gr.generate(
    jax.random.key(7), target, draft, prompts, jnp.array([4, 2]), config, 16
)
tokens = json.dumps(np.asarray(result.tokens).tolist())
# Sharded logits are the reference's, for every family.
for name in sys.argv[4:]:
    model = gr.models.load(f"{data}/{name}", mesh=mesh)
    golden = np.load(f"{data}/{name}/golden.npz")
    length = golden["tokens"].shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    logits, cache = jax.jit(model.apply)(
        model.params,
        golden["tokens"],
        jnp.broadcast_to(jnp.arange(length)[None], (2, length)),
        model.init_cache(2, length),
        jnp.broadcast_to(mask[None], (2, length, length)),
    )
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    assert cache.keys[0].addressable_shards[0].data.shape[0] == 1
print(tokens)
"""


def test_one_device_eight_devices_and_two_processes_write_the_same():
    """And with eight devices all families compute what the reference did."""
    wanted = output(python(SCRIPT, "0", "0")).splitlines()[-1]
    assert json.loads(wanted)[0][15] >= 0
    spread = python(SCRIPT, "0", "0", *FAMILIES, devices=8)
    assert output(spread).splitlines()[-1] == wanted
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    pair = [python(SCRIPT, str(i), port, devices=2) for i in range(2)]
    for process in pair:
        # The library that joins them talks on standard output, too.
        assert output(process).splitlines()[-1] == wanted
