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
import functools
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import call_seconds, logits_pair, output_deviation, time_call
from reference_solvers import SOLVERS, run_limited

import globalres_jax as gr
from globalres_jax.transforms import probabilities
from globalres_jax.verifiers import TruncatedGlobalResolution

NUM_DRAFTS = (2, 4, 5, 10)
SOLVED = 1e-4
FEW_ITERATIONS = 10


@dataclasses.dataclass
class Cell:
    """One solver on one (top-k, n); times in milliseconds."""

    top_k: int
    n: int
    solver: str
    problems: int = 0
    median_ms: float | None = None
    p90_ms: float | None = None
    solved: float | None = None
    largest_gap: float | None = None
    largest_l1: float | None = None
    acceptance: float | None = None
    compile_s: float | None = None
    over_limit_s: float | None = None


def problems_of(target, draft, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """p [rows, k] (a sub-distribution) and q [rows, k] on the draft's top k tokens."""
    p, q = probabilities(target), probabilities(draft, top_k=top_k)
    tokens = jax.lax.top_k(q, min(top_k, q.shape[1]))[1]
    return tuple(np.asarray(jnp.take_along_axis(x, tokens, axis=1)) for x in (p, q))


def summarise(cell: Cell, seconds: list[float], gaps: list[float]) -> Cell:
    cell.problems = len(seconds)
    cell.median_ms = 1e3 * float(np.median(seconds))
    cell.p90_ms = 1e3 * float(np.percentile(seconds, 90))
    cell.solved = float(np.mean([gap <= SOLVED for gap in gaps]))
    cell.largest_gap = float(np.max(gaps))
    return cell


def race_cell(cell: Cell, solver, p, q, budget: float, limit: float = np.inf) -> Cell:
    """A solver of the race dual."""
    n = cell.n
    solve = jax.jit(lambda p, q: gr.solve_transport(p, gr.IID(q, n), solver))
    if np.isfinite(limit):
        # If its first iterations take longer than the limit, so does a solve.
        few = dataclasses.replace(solver, maxiter=FEW_ITERATIONS)
        begin = jax.jit(lambda p, q: gr.solve_transport(p, gr.IID(q, n), few))
        if time_call(begin, p[0], q[0], repeats=1)[1] > limit:
            cell.over_limit_s = limit
            return cell
    start = time.perf_counter()
    jax.block_until_ready(solve(p[0], q[0]))
    cell.compile_s = time.perf_counter() - start
    seconds, gaps, deviations, rates = [], [], [], []
    begin = time.perf_counter()
    for p_row, q_row in zip(p, q, strict=True):
        plan, took = time_call(solve, p_row, q_row)
        seconds.append(took)
        gaps.append(float(plan.gap))
        rates.append(float(plan.acceptance_rate))
        deviations.append(
            output_deviation(
                p_row, q_row, n, np.asarray(plan.weights), np.asarray(plan.pick)
            )
        )
        if time.perf_counter() - begin > budget:
            break
    cell.largest_l1 = max(deviations)
    cell.acceptance = float(np.mean(rates))
    return summarise(cell, seconds, gaps)


def published_cell(cell: Cell, tau: float, p, q, budget: float) -> Cell:
    """The paper's method; a failure falls back on target sampling."""
    n, rule = cell.n, TruncatedGlobalResolution(tau=tau)
    solve = jax.jit(lambda p, q: rule.prepare(p, gr.IID(q, n)))
    rate = jax.jit(lambda p, q: rule.acceptance_rate(p, gr.IID(q, n)))
    start = time.perf_counter()
    jax.block_until_ready(solve(p[0], q[0]))
    cell.compile_s = time.perf_counter() - start
    jax.block_until_ready(rate(p[0], q[0]))
    seconds, solved, rates, gaps = [], [], [], []
    begin = time.perf_counter()
    for p_row, q_row in zip(p, q, strict=True):
        plan, took = time_call(solve, p_row, q_row, repeats=1)
        seconds.append(took)
        solved.append(bool(plan.converged))
        rates.append(float(rate(p_row, q_row)))
        gaps.append(float(plan.upper_bound) - rates[-1])
        if time.perf_counter() - begin > budget:
            break
    summarise(cell, seconds, gaps)
    cell.solved = float(np.mean(solved))  # by its own success flag
    cell.acceptance = float(np.mean(rates))
    return cell


def reference_cell(cell: Cell, p, q, limit: float, budget: float) -> Cell:
    """A solver over sets of drafts, in a process that can be stopped."""
    problems = [
        (a.astype(np.float64), (b / b.sum()).astype(np.float64))
        for a, b in zip(p, q.astype(np.float64), strict=True)
    ]
    outcomes = run_limited(cell.solver, problems, cell.n, limit, budget)
    if not outcomes:
        cell.over_limit_s = limit
        return cell
    gaps = []
    for (a, b), (_, value) in zip(problems, outcomes, strict=False):
        order = np.argsort(-b / np.maximum(a, 1e-300))
        a, b = a[order], b[order]
        psi = np.concatenate([[0], np.cumsum(a) - np.cumsum(b) ** cell.n])
        gaps.append(abs(1 + psi.min() - value))
    summarise(cell, [seconds for seconds, _ in outcomes], gaps)
    cell.acceptance = float(np.mean([value for _, value in outcomes]))
    return cell


def table(target, draft, args) -> list[Cell]:
    """All cells, row by row."""
    vocab_size = target.shape[1]
    sizes = [k for k in args.top_k if k < vocab_size] + [vocab_size]
    columns = {name: None for name in SOLVERS if not args.ours_only}
    if not args.ours_only:
        columns["paper, tau 1e-3"] = functools.partial(published_cell, tau=1e-3)
        columns["paper, tau 1e-4"] = functools.partial(published_cell, tau=1e-4)
        columns["L-BFGS-B on race"] = functools.partial(
            race_cell, solver=gr.BoxLBFGS(), limit=args.limit
        )
    columns["projected Newton"] = functools.partial(
        race_cell, solver=gr.ProjectedNewton()
    )
    cells = []
    for top_k in sizes:
        p, q = problems_of(target, draft, top_k)
        for n in NUM_DRAFTS:
            for name, run in columns.items():
                cell = Cell(top_k, n, name)
                slow = args.budget
                if name == "projected Newton":
                    slow = np.inf
                if run is None:
                    cell = reference_cell(cell, p, q, args.limit, slow)
                else:
                    cell = run(cell, p=p, q=q, budget=slow)
                cells.append(cell)
                print(json.dumps(dataclasses.asdict(cell)), flush=True)
    return cells


def markdown(cells: list[Cell]) -> str:
    """Time per problem (share solved), then accuracy, then the budget table."""
    solvers = list(dict.fromkeys(cell.solver for cell in cells))
    by_row: dict = {}
    for cell in cells:
        by_row.setdefault((cell.top_k, cell.n), {})[cell.solver] = cell

    def time_text(cell: Cell) -> str:
        if cell.over_limit_s is not None:
            return f"> {1e3 * cell.over_limit_s:.0f}"
        return f"{cell.median_ms:.2f} / {cell.p90_ms:.2f} ({cell.solved:.0%})"

    def accuracy_text(cell: Cell) -> str:
        if cell.over_limit_s is not None:
            return "-"
        l1 = "" if cell.largest_l1 is None else f", {cell.largest_l1:.0e}"
        return f"{cell.largest_gap:.0e}{l1}"

    lines = []
    for title, text in (
        ("Milliseconds per problem, median / p90 (share solved)", time_text),
        ("Largest gap to the optimum, largest L1 deviation of the law", accuracy_text),
    ):
        lines += [f"\n{title}\n", "| top-k, n | " + " | ".join(solvers) + " |"]
        lines.append("|---" * (len(solvers) + 1) + "|")
        for (top_k, n), row in by_row.items():
            texts = " | ".join(text(row[name]) for name in solvers)
            lines.append(f"| {top_k}, {n} | {texts} |")
    lines += ["\nBest mean acceptance rate within a time per token (median)\n"]
    lines += ["| solver | 1 ms | 10 ms | 100 ms |", "|---|---|---|---|"]
    for name in solvers:
        best = []
        for budget in (1, 10, 100):
            reached = [
                (cell.acceptance, cell.top_k, cell.n)
                for cell in cells
                if cell.solver == name and (cell.median_ms or np.inf) <= budget
            ]
            rate, top_k, n = max(reached, default=(None, 0, 0))
            best.append("-" if rate is None else f"{rate:.4f} ({top_k}, {n})")
        lines.append(f"| {name} | {' | '.join(best)} |")
    return "\n".join(lines)


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


def rows_table(title: str, rows: list[dict]) -> str:
    names = list(rows[0])
    lines = [f"\n{title}\n", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        texts = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(texts).replace("None", "") + " |")
    return "\n".join(lines)


def plot(cells: list[Cell], path: Path) -> None:
    """Median time of every solver over the rows of the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(dict.fromkeys((cell.top_k, cell.n) for cell in cells))
    figure, axis = plt.subplots(figsize=(10, 5), layout="constrained")
    for index, name in enumerate(dict.fromkeys(cell.solver for cell in cells)):
        mine = [c for c in cells if c.solver == name and c.median_ms is not None]
        x = [rows.index((c.top_k, c.n)) for c in mine]
        (line,) = axis.plot(x, [c.median_ms for c in mine], label=name, lw=1)
        for c, place in zip(mine, x, strict=True):
            face = line.get_color() if c.solved == 1 else "white"
            axis.plot(
                place, c.median_ms, "osD^vP*"[index % 7], c=line.get_color(), mfc=face
            )
    axis.set_yscale("log")
    axis.set_xticks(range(len(rows)), [f"{k}, {n}" for k, n in rows], rotation=45)
    axis.set_xlabel("top-k, number of drafts")
    axis.set_ylabel("milliseconds per problem (median)")
    axis.set_title("Filled: every problem solved. Missing: over the time limit")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


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
