"""Plots of what `trees.py` measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_accepted(rows: list[dict], path: Path) -> None:
    """Drafts accepted by size of the tree: a panel a temperature, a line a rule.

    Of each rule and size the best shape.
    """
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    figure, panels = plt.subplots(
        1,
        len(temperatures),
        figsize=(4 * len(temperatures) + 2.2, 4.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    sizes = sorted({_size(row["nodes"]) for row in rows})
    for panel, temperature in zip(panels[0], temperatures, strict=True):
        for number, rule in enumerate(rules):
            best = [
                max(found, key=lambda row: row["accepted"])
                for size in sizes
                if (found := _of(rows, temperature, rule, size))
            ]
            panel.errorbar(
                [_size(row["nodes"]) for row in best],
                [row["accepted"] for row in best],
                [row["standard_error"] for row in best],
                label=rule,
                marker="osD^v<>P"[number % 8],
                markersize=5,
                capsize=2,
                color=f"C{number}",
                linewidth=2.5 if number == 0 else 1.2,
            )
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xlabel("drafted tokens (at most)")
        panel.set_title(f"temperature {temperature}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(
        "drafts accepted per target call\n(best shape of that size)"
    )
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _size(nodes: int) -> int:
    """The power of two that a tree is filled up to."""
    return 1 << (nodes - 1).bit_length()


def _of(rows: list[dict], temperature: float, rule: str, size: int) -> list[dict]:
    return [
        row
        for row in rows
        if row["temperature"] == temperature
        and row["rule"] == rule
        and _size(row["nodes"]) == size
    ]
