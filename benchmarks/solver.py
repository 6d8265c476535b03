"""Every solver of the transport problem on real logits, in one table.

    python benchmarks/solver.py [--logits FILE.npz] [--out FOLDER]
    python benchmarks/solver.py --different-drafts

Drafts are restricted to the top k tokens of the draft model; the target is the whole
distribution. Times are per problem, from p and q on the k tokens to the solution, after
warm-up; compilation is reported apart. A slow solver gets `--budget` seconds a cell and
`--limit` seconds a problem, and '>' where even one problem takes longer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import call_seconds, logits_pair, time_call
from solver_cells import problems_of, table
from solver_report import markdown, plot, rows_table

import globalres_jax as gr


def batches(target, draft, top_k: int, n: int = 4) -> list[dict]:
    """Milliseconds per problem: one call each, and batches in one call.

    Medians, and the fastest of 11 calls, which other work on the machine touches least.
    """
    p, q = problems_of(target, draft, top_k)

    def solve(p, q):
        return gr.solve_transport(p, gr.IID(q, n))

    devices = jax.device_count()
    mesh = gr.sharding.make_mesh(data=devices)
    shared = jax.jit(gr.sharding.spread_vmap(mesh, solve))
    single = jax.jit(solve)

    def milliseconds(function, *args):
        seconds = call_seconds(function, *args, repeats=11)[1]
        return 1e3 * np.asarray([np.median(seconds), np.min(seconds)])

    each = [milliseconds(single, *pair) for pair in zip(p, q, strict=True)]
    each, each_fastest = np.mean(each, axis=0)
    rows = []
    for size in (1, 16, 64, 256):
        chosen = np.resize(np.arange(len(p)), size)
        pair = jnp.asarray(p[chosen]), jnp.asarray(q[chosen])
        together, fastest = milliseconds(jax.jit(jax.vmap(solve)), *pair) / size
        row = {
            "top_k": p.shape[1],
            "batch": size,
            "one_by_one_ms": float(each),
            "vmap_ms": float(together),
            f"devices_{devices}_ms": None,
            "one_by_one_fastest_ms": float(each_fastest),
            "vmap_fastest_ms": float(fastest),
        }
        if size % devices == 0:
            spread = gr.sharding.place_rows(mesh, pair)
            row[f"devices_{devices}_ms"] = float(
                milliseconds(shared, *spread)[0] / size
            )
        rows.append(row)
    return rows


def scaling() -> list[dict]:
    """Synthetic Zipf-like pairs over V at n = 4, and over n at V = 1000."""
    rng = np.random.default_rng(0)
    rows = []
    for vocab_size, n in [
        *((v, 4) for v in (1_000, 4_000, 16_000, 32_000, 65_536, 131_072, 262_144)),
        *((1_000, n) for n in (1, 2, 8, 16, 32, 64)),
    ]:
        solve = jax.jit(lambda p, q, n=n: gr.solve_transport(p, gr.IID(q, n)))
        seconds, gaps = [], []
        for _ in range(5):
            logits = -1.2 * np.log(np.arange(1, vocab_size + 1))
            p, q = (
                np.asarray(jax.nn.softmax(logits + rng.normal(size=vocab_size)))
                for _ in range(2)
            )
            plan, took = time_call(solve, p, q)
            seconds.append(took)
            gaps.append(float(plan.gap))
        rows.append(
            {
                "vocab_size": vocab_size,
                "n": n,
                "median_ms": 1e3 * float(np.median(seconds)),
                "largest_gap": max(gaps),
            }
        )
    return rows


def different_drafts(target, draft) -> list[dict]:
    """Drafts without replacement: time, and how far the certificate is from tight.

    Each size of problem is compiled anew, which is timed, too.
    """
    rows = []
    for top_k, n in ((32, 2), (256, 2), (32, 3), (32, 4), (64, 4), (256, 4)):
        p, q = problems_of(target, draft, top_k)

        def solve(p, q, n=n):
            return gr.solve_transport(p, gr.WithoutReplacement(q, n))

        lowered = jax.jit(solve).lower(p[0], q[0])
        begin = time.perf_counter()
        compiled = lowered.compile()
        compile_s = time.perf_counter() - begin
        calls = [
            call_seconds(compiled, *pair, repeats=5) for pair in zip(p, q, strict=True)
        ]
        seconds = np.stack([seconds for _, seconds in calls])
        plans = [plan for plan, _ in calls]
        rows.append(
            {
                "top_k": top_k,
                "n": n,
                "compile_s": compile_s,
                "median_ms": 1e3 * float(np.median(seconds)),
                "p90_ms": 1e3 * float(np.percentile(seconds, 90)),
                "fastest_ms": 1e3 * float(np.mean(seconds.min(axis=1))),
                "iterations": float(np.mean([plan.iterations for plan in plans])),
                "largest_gap": float(np.max([plan.gap for plan in plans])),
                "solved": float(np.mean([plan.converged for plan in plans])),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logits", type=Path, help=".npz; the embedded pair if absent")
    parser.add_argument("--rows", type=int, default=32, help="problems a cell, at most")
    parser.add_argument("--top-k", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--budget", type=float, default=10.0, help="seconds a cell")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds a problem")
    parser.add_argument("--ours-only", action="store_true", help="one column")
    parser.add_argument(
        "--synchronous",
        action="store_true",
        help="run each call in the calling thread, not in one that must be woken",
    )
    parser.add_argument(
        "--different-drafts",
        action="store_true",
        help="only the table of drafts without replacement",
    )
    parser.add_argument("--out", type=Path, help="folder for solver.{md,json,png}")
    args = parser.parse_args()
    jax.config.update("jax_cpu_enable_async_dispatch", not args.synchronous)

    # As many devices as cores, for the batches; all else runs on the first.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    target, draft = logits_pair(args.logits, args.rows)
    if args.different_drafts:
        title = "Drafts without replacement"
        print(rows_table(title, different_drafts(target, draft)))
        return
    cells = table(target, draft, args)
    batched = [
        row
        for k in (32, 64, 1000)
        for row in batches(target, draft, min(k, target.shape[1]))
    ]
    scaled = scaling()
    dispatch = "synchronous" if args.synchronous else "asynchronous"
    report = "\n".join(
        [
            f"{len(target)} positions, V = {target.shape[1]}, "
            f"{jax.devices()[0].device_kind}, {dispatch} dispatch",
            markdown(cells),
            rows_table("Batches, milliseconds per problem (n = 4)", batched),
            rows_table("Scaling (synthetic)", scaled),
        ]
    )
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "solver.md").write_text(report + "\n", "utf-8")
        described = {
            "cells": [dataclasses.asdict(cell) for cell in cells],
            "batches": batched,
            "scaling": scaled,
        }
        (args.out / "solver.json").write_text(
            json.dumps(described, indent=2) + "\n", "utf-8"
        )
        plot(cells, args.out / "solver.png")


if __name__ == "__main__":
    main()
