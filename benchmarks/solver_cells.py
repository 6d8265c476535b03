"""The cells of `benchmarks/solver.py`: one solver on problems of one size."""

from __future__ import annotations

import dataclasses
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from measure import output_deviation, time_call
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
