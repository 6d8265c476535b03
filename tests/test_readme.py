"""The README's Python is run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S
)
#: This one must come before JAX runs anything.
DEVICES = [block for block in BLOCKS if "jax_num_cpu_devices" in block]


def test_blocks_run_one_after_another(capsys):
    names: dict = {}
    for block in BLOCKS:
        if block not in DEVICES:
            exec(compile(block, "README.md", "exec"), names)
    result = names["result"]
    assert int(result.lengths[0]) == 64 and len(capsys.readouterr().out) > 64
    assert float(result.metrics.mean_acceptance_length[0]) > 1


def test_the_block_on_devices_runs_first():
    (block,) = DEVICES
    program = f"""
import os, jax, globalres_jax as gr
from numpy.random import default_rng
p, q = default_rng(0).dirichlet([0.5] * 20, (2, 2 * os.cpu_count())).astype("f4")
{block}
assert plans.gap.shape == (len(p),) and plans.converged.all()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
