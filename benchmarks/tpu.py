"""Cost of the batched solve on a TPU, compiled ahead of time without one.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/tpu.py

Needs the package `libtpu`. Figures are the compiler's own: one evaluation of each
loop's body counts, and temporary memory is for the whole batch.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies

import globalres_jax as gr


def compile_solve(vocab_size: int, batch: int, topology: str = "v5e:2x2") -> dict:
    """Compiles `batch` solves over `vocab_size` tokens, n being data."""
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    place = jax.sharding.SingleDeviceSharding(devices[0])

    def described(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    solve = jax.jit(jax.vmap(lambda p, q, n: gr.solve_transport(p, gr.IID(q, n))))
    rows = described((batch, vocab_size), jnp.float32)
    start = time.perf_counter()
    compiled = solve.lower(rows, rows, described((batch,), jnp.int32)).compile()
    seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "vocab_size": vocab_size,
        "batch": batch,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--vocab-size", type=int, nargs="*", default=[1_000, 32_000, 128_000, 262_144]
    )
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    for vocab_size in args.vocab_size:
        print(json.dumps(compile_solve(vocab_size, args.batch)), flush=True)


if __name__ == "__main__":
    main()
