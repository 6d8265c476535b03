"""One device, eight devices and two processes compute and write the same."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
from loaded import DATA

import globalres_jax as gr

#: Between them they have every kind of parameter: biases, norms of queries and keys,
#: norms behind attention and MLP, a head of their own or a tied one.
SPREAD = ("qwen2", "qwen3", "gemma2")


def python(script: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """A process of its own, which sees as many devices as it is told."""
    options = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
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
    """The last line that it wrote: the library that joins processes talks, too."""
    out, errors = process.communicate(timeout=540)
    assert process.returncode == 0, errors[-3000:]
    return out.splitlines()[-1]


def written(mesh=None, data=DATA) -> str:
    """What a pair writes, sampled, as JSON."""
    whole, draft = gr.models.load_pair(f"{data}/qwen2", "layers:1", mesh=mesh)
    # One layer of each: how they are placed is the same for all.
    target = gr.models.pairs.keep_layers(whole, (0,))
    weight = target.params["blocks"][0]["attention"]["query"]["weight"][...]
    if mesh is not None:
        shard = weight.addressable_shards[0].data.shape
        assert shard[0] * mesh.shape["model"] == weight.shape[0], shard
    prompts = np.array([[3, 4, 5, 6], [9, 8, 0, 0]], np.int32)
    # The rule that compiles fastest: how rows are placed is the same for all.
    rule = gr.verifiers.SingleDraft()
    config = gr.SpeculativeConfig(num_drafts=1, draft_length=1, verifier=rule)
    result = gr.generate(
        jax.random.key(7), target, draft, prompts, np.array([4, 2]), config, 16
    )
    return json.dumps(np.asarray(result.tokens).tolist())


PROCESS = """
import sys, json, jax, numpy as np
data, tests, number, port = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
if port != "0":
    jax.distributed.initialize(f"localhost:{port}", 2, number)
sys.path.insert(0, tests)
from globalres_jax import sharding
from test_devices import written
mesh = sharding.make_mesh(data=2)
assert dict(mesh.shape) == {"data": 2, "model": jax.device_count() // 2}
"""

EIGHT = (
    PROCESS
    + """
import globalres_jax as gr
from globalres_jax import models
# Rows of a batch, a half of them on each part of the mesh.
p, q = np.random.default_rng(0).dirichlet(np.ones(12), (2, 4)).astype(np.float32)
spread = jax.jit(
    sharding.spread_vmap(mesh, lambda p, q: gr.solve_transport(p, gr.IID(q, 3)))
)
plan = spread(*sharding.place_rows(mesh, (p, q)))
assert plan.acceptance_rate.addressable_shards[0].data.shape == (2,)
for rate, *row in zip(np.asarray(plan.acceptance_rate), p, q):
    best = gr.testing.linear_program(row[0], gr.IID(row[1], 3))
    np.testing.assert_allclose(rate, best, atol=1e-5)
try:
    spread(p[:3], q[:3])
except ValueError as error:
    assert "3 rows" in str(error) and "2 devices" in str(error), error
else:
    raise AssertionError("3 rows were split over 2 parts")
# Sharded logits are the reference's.
for name in sys.argv[5:]:
    model = models.load(f"{data}/{name}", mesh=mesh)
    golden = np.load(f"{data}/{name}/golden.npz")
    length = golden["tokens"].shape[1]
    mask = np.tril(np.ones((length, length), bool))
    logits, cache = jax.jit(model.apply)(
        model.params,
        golden["tokens"],
        np.broadcast_to(np.arange(length)[None], (2, length)),
        model.init_cache(2, length),
        np.broadcast_to(mask[None], (2, length, length)),
    )
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    assert cache.keys[0].addressable_shards[0].data.shape[0] == 1
print(written(mesh, data))
"""
)

TWO = PROCESS + "print(written(mesh, data))\n"


def test_one_device_eight_devices_and_two_processes_write_the_same():
    """And with eight devices the families compute what the reference did."""
    here = str(DATA.parent)
    wanted = written()
    assert json.loads(wanted)[0][15] >= 0
    assert output(python(EIGHT, here, "0", "0", *SPREAD, devices=8)) == wanted
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    pair = [python(TWO, here, str(i), port) for i in range(2)]
    try:
        assert [output(process) for process in pair] == [wanted, wanted]
    finally:
        for process in pair:  # where one fails, the other waits for it
            process.kill()
            process.communicate()


def test_a_mesh_without_an_axis_for_models_replicates_them():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    model = gr.models.load("embedded-draft", mesh=mesh)
    for leaf in jax.tree.leaves(model.params):
        assert leaf.sharding.is_fully_replicated
