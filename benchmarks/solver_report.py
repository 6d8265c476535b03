"""The tables and the picture of `benchmarks/solver.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from solver_cells import Cell


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
