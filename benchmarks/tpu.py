"""Cost on a TPU of the batched solve and of a whole step, compiled without one.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/tpu.py [--step]

Needs the package `libtpu`. Figures are the compiler's own: one evaluation of each
loop's body counts, and temporary memory is for the whole batch. The step is a default
one with models that cost nothing: their logits are a row that is copied. Its loops are
the levels of the draft, the walk (one body a level), and the solver on the law's few
tokens; `at_most` multiplies everything by the levels, which is more than they can take.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies

import globalres_jax as gr
from globalres_jax.cache import init_cache
from globalres_jax.decoding.step import Request, decode_step, first_state
from globalres_jax.drafters import as_drafter


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


def compile_step(vocab_size: int, batch: int, topology: str = "v5e:2x2") -> dict:
    """Compiles everything of a default step but the model calls."""
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    place = jax.sharding.SingleDeviceSharding(devices[0])
    target, draft = free_model(vocab_size), free_model(vocab_size)
    config = gr.SpeculativeConfig()
    capacity = 1024

    def first(key, target, draft):
        rows = jnp.zeros((batch, 1), jnp.int32), jnp.ones(batch, jnp.int32)
        request = Request(
            target=target,
            drafter=as_drafter(draft),
            options=config.sampling.for_rows(batch),
            ends=jnp.full((batch, 1), -1),
            config=config.program(),
        )
        keys, budget = jax.random.split(key, batch), jnp.full(batch, 64)
        return first_state(request, keys, *rows, budget, capacity), request

    arguments = jax.eval_shape(first, jax.random.key(0), target, draft)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    start = time.perf_counter()
    compiled = jax.jit(decode_step, donate_argnums=0).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    cost, levels = compiled.cost_analysis(), config.token_tree.depth + 1
    return {
        "step": "default, model calls apart",
        "vocab_size": vocab_size,
        "batch": batch,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "at_most_flops": levels * cost["flops"],
        "at_most_bytes_accessed": levels * cost["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": round(seconds, 1),
    }


def free_model(vocab_size: int) -> gr.Model:
    """A model whose logits are one row, and whose cache holds nothing."""

    def apply(params, tokens, positions, cache, mask):
        del positions, mask
        logits = params[None, None, :] + tokens[:, :, None].astype(params.dtype)
        cache = cache.with_length(cache.length + tokens.shape[1])
        # Logits as a model leaves them: in memory.
        return jax.lax.optimization_barrier(logits), cache

    def new_cache(batch, length):
        return init_cache(0, batch, length, 1, 1)

    return gr.Model(jnp.zeros(vocab_size), apply, new_cache, vocab_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--vocab-size", type=int, nargs="*", default=[1_000, 32_000, 128_000, 262_144]
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--step", action="store_true", help="a whole decoding step")
    args = parser.parse_args()
    cost = compile_step if args.step else compile_solve
    for vocab_size in args.vocab_size:
        print(json.dumps(cost(vocab_size, args.batch)), flush=True)


if __name__ == "__main__":
    main()
