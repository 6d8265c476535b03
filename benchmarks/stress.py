"""Twenty thousand problems, random, structured and real: none may be left unsolved.

    python benchmarks/stress.py [--logits FILE.npz] [--problems 20000]

Float32. Counts NaN, plans that are not certified to a gap of 1e-4, and plans whose
output law is off by more than 2e-6 in L1 (against a fine float64 quadrature).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import logits_pair, output_deviation

import globalres_jax as gr
from globalres_jax.numerics.rows import map_rows
from globalres_jax.transforms import probabilities

NUM_DRAFTS = (1, 2, 3, 4, 5, 8, 10, 16, 32, 64)


def _normal(x: np.ndarray) -> np.ndarray:
    return x / x.sum(-1, keepdims=True)


def families(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Endless batches (name, p [rows, V], q [rows, V])."""
    rows = 50
    while True:
        for size in (1, 2, 8, 50, 300, 2000):
            shape = (rows, size)
            for concentration in (0.02, 0.3, 3.0):
                alpha = np.full(size, concentration)
                p, q = rng.dirichlet(alpha, rows), rng.dirichlet(alpha, rows)
                yield "Dirichlet", p, q
            yield "equal", q, q
            near = _normal(q * np.exp(1e-3 * rng.normal(size=shape)) + 1e-12)
            yield "near ties", near, _normal(q + 1e-12)
            hot = np.eye(size)[rng.integers(size, size=rows)]
            yield "one-hot p", hot, q
            yield "one-hot q", q, hot
            side = rng.random(shape) < 0.5
            side[:, 0], side[:, -1] = True, size == 1
            yield "disjoint", _normal(side * 1.0), _normal(~side + 1e-30 + (size == 1))
            tiny = _normal(np.exp(rng.uniform(-69, 0, shape)))
            yield "down to 1e-30", tiny, _normal(np.exp(rng.uniform(-69, 0, shape)))
            yield "sub-distribution", 0.3 * near, q
            levels = rng.integers(1, 4, (2, *shape)).astype(float)
            yield "ties by the thousand", _normal(levels[0]), _normal(levels[1])
            steps = -rng.uniform(0.5, 2) * np.log(np.arange(1, size + 1))
            pair = np.exp(steps + rng.normal(size=(2, *shape)))
            yield "Zipf", _normal(pair[0]), _normal(pair[1])


def real(target, draft) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Real rows at several temperatures and top-k."""
    for temperature in (0.3, 1.0, 1.5):
        for top_k in (5, 40, 300, 1000):
            p = probabilities(target, temperature, top_k=top_k)
            q = probabilities(draft, temperature, top_k=top_k)
            tokens = jax.lax.top_k(q, min(top_k, q.shape[1]))[1]
            pair = (jnp.take_along_axis(x, tokens, axis=1) for x in (p, q))
            yield "real", *map(np.asarray, pair)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logits", type=Path, help=".npz; the embedded pair if absent")
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)

    @jax.jit
    def solve(p, q, n):
        return map_rows(lambda p, q, n: gr.solve_transport(p, gr.IID(q, n)), p, q, n)

    totals: dict[str, list[float]] = {}
    target, draft = logits_pair(args.logits, 32)
    sources = [*(real(target, draft) for _ in NUM_DRAFTS), families(rng)]
    done = 0
    for source in sources:
        for name, p, q in source:
            p, q = p.astype(np.float32), q.astype(np.float32)
            n = rng.choice(NUM_DRAFTS, len(p)).astype(np.int32)
            plan = jax.tree.map(np.asarray, solve(p, q, n))
            checked = rng.choice(len(p), 2)
            deviations = [
                output_deviation(p[i], q[i], int(n[i]), plan.weights[i], plan.pick[i])
                for i in checked
            ]
            bad = ~np.isfinite(plan.gap) | ~np.isfinite(plan.pick).all(1)
            bad[checked] |= ~np.isfinite(deviations)
            row = totals.setdefault(name, [0, 0, 0, 0.0, 0, 0.0])
            row[0] += len(p)
            row[1] += int(bad.sum())
            row[2] += int((~(plan.gap <= 1e-4)).sum())
            row[3] = max(row[3], float(plan.gap.max()))
            row[4] = max(row[4], int(plan.iterations.max()))
            row[5] = max(row[5], *deviations)
            done += len(p)
            if done >= args.problems:
                break
        if done >= args.problems:
            break
    print("| family | problems | NaN | unsolved | largest gap | iterations | L1 |")
    print("|---|---|---|---|---|---|---|")
    for name, (count, nans, unsolved, gap, iterations, l1) in totals.items():
        print(
            f"| {name} | {count} | {nans} | {unsolved} | {gap:.1e} | {iterations} "
            f"| {l1:.1e} |"
        )
    nans, unsolved = (sum(row[i] for row in totals.values()) for i in (1, 2))
    print(f"\n{done} problems, {nans} NaN, {unsolved} unsolved")
    return int(bool(nans or unsolved))


if __name__ == "__main__":
    sys.exit(main())
