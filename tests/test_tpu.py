"""The decoding loop compiles for a TPU on a machine that has none."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "tpu.py"
SIZES = (100, 1000)
#: A whole loop, with the rule that solves.
LOOP = """
    import jax, jax.numpy as jnp
    from jax.experimental import topologies

    import globalres_jax as gr
    from globalres_jax import models
    from globalres_jax.decoding import loop

    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    place = jax.sharding.SingleDeviceSharding(devices[0])

    def on_tpu(tree):
        def describe(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        return jax.tree.map(describe, tree)

    target, draft = models.load_pair("embedded-draft", "layers:0")
    rule = gr.verifiers.GlobalResolution()
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=1, verifier=rule)
    program = loop.as_program(
        jax.random.key(0),
        target,
        draft,
        jnp.zeros((2, 5), jnp.int32),
        jnp.ones(2, jnp.int32),
        config,
        8,
    )
    static = program.static | {"platform": "tpu"}
    lowered = loop._generate.lower(*on_tpu(program.arrays), **static)
    compiled = lowered.compile()
    cost = compiled.cost_analysis()
    print("flops", cost["flops"])
    print("temporary bytes", compiled.memory_analysis().temp_size_in_bytes)
"""


def output(*arguments: str) -> str:
    """Of a Python process of its own: libtpu takes locks and threads."""
    # A TPU's compiler does not know the options of the CPU's, and optimises.
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.sweep
def test_batched_solve_compiles_and_its_memory_grows_with_the_vocabulary():
    """By the benchmark as it is run by hand."""
    sizes = map(str, SIZES)
    lines = output(str(BENCHMARK), "--batch", "4", "--vocab-size", *sizes).splitlines()
    small, large = map(json.loads, lines[:2])
    assert (small["vocab_size"], large["vocab_size"]) == SIZES
    assert 0 < small["flops"] < large["flops"]
    assert 0 < small["temporary_bytes"] < large["temporary_bytes"]
    # A few [70, V] arrays at most.
    assert large["temporary_bytes"] < 4 * 68 * SIZES[1] * 4 * 4


def test_decoding_compiles_ahead_of_time_for_tpu():
    said = output("-c", textwrap.dedent(LOOP))
    flops = float(said.split("flops ")[1].split()[0])
    memory = int(said.split("temporary bytes")[1].split()[0])
    # One target call of the loop's body alone: 3 nodes, 2 rows, 300 000 weights.
    assert flops > 2 * 3 * 2 * 3e5
    assert 0 < memory < 2**30
