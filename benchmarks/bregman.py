"""Bregman transforms against plain top-k, at the same mean number of kept tokens.

    python benchmarks/bregman.py [--logits FILE.npz] [--out FOLDER]

For each divergence the token cost is found at which `--mean-k` tokens are kept on
average. Shown are how many are kept at each position, what the optimal rule accepts
of n i.i.d. drafts where p and q are transformed alike, the same where both keep k
tokens everywhere, and how far the transform is from p (total variation). Without a
file: rows of the embedded pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import logits_pair

import globalres_jax as gr
from globalres_jax.base import Array
from globalres_jax.numerics.rows import map_rows
from globalres_jax.transforms import probabilities

DIVERGENCES = ((1.0, False), (1.5, False), (2.0, False), (1.5, True), (3.0, True))
EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass
class Case:
    """One line of the table; `histogram` counts rows by k up to each of `EDGES`."""

    transform: str
    token_cost: float
    mean_k: float
    histogram: list[int]
    acceptance: dict[int, float]
    variation: float


@functools.partial(jax.jit, static_argnames=("n", "most"))
def acceptance(p: Array, q: Array, n: int, most: int) -> Array:
    """Mean optimum over rows: []."""

    def row(p: Array, q: Array) -> Array:
        return gr.optimal_acceptance_rate(p, gr.IID(q, n, max_support=most))

    return jnp.mean(map_rows(row, p, q))


class Bench:
    """Logits of a pair, and what both are transformed with."""

    def __init__(self, target: Array, draft: Array, temperature: float, most: int):
        self.pair, self.temperature, self.most = (target, draft), temperature, most
        self.plain = probabilities(target, temperature)

        def transform(logits: Array, top_k: Array, alpha: Array, cost: Array, dual):
            options = gr.Bregman(alpha=alpha, token_cost=cost, dual=dual)
            return probabilities(
                logits, temperature, top_k, max_top_k=most, bregman=options
            )

        self.transform = jax.jit(transform, static_argnames="dual")

    def both(self, alpha: float, cost: float, dual: bool, top_k: int | None = None):
        """p and q, transformed alike."""
        top_k = self.most if top_k is None else top_k
        numbers = np.int32(top_k), np.float32(alpha), np.float32(cost)
        return [self.transform(x, *numbers, dual=dual) for x in self.pair]

    def mean_k(self, alpha: float, cost: float, dual: bool) -> float:
        numbers = np.int32(self.most), np.float32(alpha), np.float32(cost)
        return float(
            (self.transform(self.pair[0], *numbers, dual=dual) > 0).sum(1).mean()
        )

    def cost_for(self, alpha: float, dual: bool, mean_k: float) -> float:
        """The token cost at which as many are kept on average, by halving its log."""
        low, high = -14.0, 1.0
        for _ in range(22):
            middle = (low + high) / 2
            more = self.mean_k(alpha, np.exp(middle), dual) > mean_k
            low, high = (middle, high) if more else (low, middle)
        return float(np.exp(high))

    def case(self, name: str, p: Array, q: Array, cost: float, drafts) -> Case:
        kept = np.asarray((p > 0).sum(1))
        bins = [0, *EDGES]
        counts = [
            int(((kept > low) & (kept <= high)).sum())
            for low, high in itertools.pairwise(bins)
        ]
        accepted = {n: float(acceptance(p, q, n, self.most)) for n in drafts}
        variation = float(jnp.abs(p - self.plain).sum(1).mean() / 2)
        return Case(name, cost, float(kept.mean()), counts, accepted, variation)


def measure(bench: Bench, mean_k: int, drafts) -> list[Case]:
    """Plain top-k, then each divergence: with that k everywhere, and adaptive."""
    cases = [bench.case(f"top-{mean_k}", *bench.both(1, 0, False, mean_k), 0.0, drafts)]
    for alpha, dual in DIVERGENCES:
        name = f"{'dual' if dual else 'primal'} {alpha:g}"
        if alpha != 1:
            pair = bench.both(alpha, 0, dual, mean_k)
            cases.append(bench.case(f"{name}, k = {mean_k}", *pair, 0.0, drafts))
        cost = bench.cost_for(alpha, dual, mean_k)
        pair = bench.both(alpha, cost, dual)
        cases.append(bench.case(f"{name}, adaptive", *pair, cost, drafts))
    return cases


def markdown(cases: list[Case], drafts) -> str:
    bins = " | ".join(f"k <= {edge}" for edge in EDGES)
    rates = " | ".join(f"n = {n}" for n in drafts)
    lines = [f"| transform | cost | mean k | {rates} | distance | {bins} |"]
    lines += ["|---" * (4 + len(drafts) + len(EDGES)) + "|"]
    for c in cases:
        rates = " | ".join(f"{c.acceptance[n]:.4f}" for n in drafts)
        counts = " | ".join(map(str, c.histogram))
        lines.append(
            f"| {c.transform} | {c.token_cost:.3g} | {c.mean_k:.1f} | {rates} | "
            f"{c.variation:.4f} | {counts} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logits", type=Path, help=".npz with target, draft [rows, V]")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--mean-k", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--max-k", type=int, default=256, help="most that are kept")
    parser.add_argument("--num-drafts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path, help="folder for bregman.{md,json}")
    args = parser.parse_args()

    target, draft = logits_pair(args.logits, args.rows)
    bench = Bench(target, draft, args.temp, min(args.max_k, target.shape[1]))
    reports, found = [], []
    for mean_k in args.mean_k:
        cases = measure(bench, mean_k, args.num_drafts)
        found.append(
            {"mean_k": mean_k, "cases": [dataclasses.asdict(c) for c in cases]}
        )
        reports.append(f"Mean k {mean_k}\n\n{markdown(cases, args.num_drafts)}\n")
        print(reports[-1], flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "bregman.md").write_text("\n".join(reports), "utf-8")
        text = json.dumps(found, indent=2) + "\n"
        (args.out / "bregman.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
