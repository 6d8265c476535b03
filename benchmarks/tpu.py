"""Cost on a TPU of the batched solve and of a whole step, compiled without one.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python benchmarks/tpu.py [--step]

Needs the package `libtpu`. Figures are the compiler's own: one evaluation of each
loop's body counts, and temporary memory is for the whole batch. The step is a default
one with models that cost nothing: their logits are a row that is copied. Its loops are
the levels of the draft, the walk (one body a level), and the solver on the law's few
tokens. `with loops` counts them all: a level more of the draft costs what a tree of
depth 2 does beyond one of depth 1, and each level's race what one solved alone costs,
as often as its solver may iterate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies

import globalres_jax as gr
from globalres_jax.cache import init_cache
from globalres_jax.decoding.state import Request, first_state
from globalres_jax.decoding.step import decode_step
from globalres_jax.drafters import as_drafter
from globalres_jax.transport.layer_drafts import SingleDrafts
from globalres_jax.transport.layer_plan import solve_layer
from globalres_jax.transport.newton import ProjectedNewton


def compile_solve(vocab_size: int, batch: int) -> dict:
    """Compiles `batch` solves over `vocab_size` tokens, n being data."""
    solve = jax.jit(jax.vmap(lambda p, q, n: gr.solve_transport(p, gr.IID(q, n))))
    rows = jax.ShapeDtypeStruct((batch, vocab_size), jnp.float32)
    counts = jax.ShapeDtypeStruct((batch,), jnp.int32)
    start = time.perf_counter()
    compiled = solve.lower(*_placed((rows, rows, counts))).compile()
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


def compile_step(vocab_size: int, batch: int) -> dict:
    """Compiles everything of a default step but the model calls."""
    # What accelerators get by default.
    config = gr.SpeculativeConfig(num_drafts=3)
    depth, solver = config.draft_length, config.verifier
    start = time.perf_counter()
    whole = _step(config, vocab_size, batch)
    seconds = time.perf_counter() - start
    one, two = (
        _step(dataclasses.replace(config, draft_length=length), vocab_size, batch)
        for length in (1, 2)
    )
    race = _race(config, batch)
    described = {"step": "default, model calls apart", "vocab_size": vocab_size}
    described |= {"batch": batch, "compile_seconds": round(seconds, 1)}
    described["temporary_bytes"] = whole.memory_analysis().temp_size_in_bytes
    for name in ("flops", "bytes accessed"):
        costs = (x.cost_analysis()[name] for x in (whole, one, two, race))
        of_whole, of_one, of_two, of_race = costs
        described[name] = of_whole
        described[f"{name}, with loops"] = (
            of_one + (depth - 1) * (of_two - of_one) + depth * solver.maxiter * of_race
        )
    return described


def _step(config: gr.SpeculativeConfig, vocab_size: int, batch: int):
    """A step with models that cost nothing, compiled."""
    target, draft = free_model(vocab_size), free_model(vocab_size)

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
        return first_state(request, keys, *rows, budget, capacity=1024), request

    arguments = _placed(jax.eval_shape(first, jax.random.key(0), target, draft))
    return jax.jit(decode_step, donate_argnums=0).lower(*arguments).compile()


def _race(config: gr.SpeculativeConfig, batch: int):
    """The race of one layer, compiled: each body once, so one iteration or more."""
    rule, size = config.verifier, (batch, config.num_drafts, config.draft_top_k)
    solver = ProjectedNewton(maxiter=rule.maxiter, tol=rule.tol)

    def solve(target, q, counts):
        return solve_layer(target, SingleDrafts(q), counts, solver)

    rows = jax.ShapeDtypeStruct(size, jnp.float32)
    counts = jax.ShapeDtypeStruct(size[:2], jnp.int32)
    return jax.jit(jax.vmap(solve)).lower(*_placed((rows, rows, counts))).compile()


def _placed(shapes):
    """The same shapes, on a TPU."""
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    place = jax.sharding.SingleDeviceSharding(devices[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )


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
