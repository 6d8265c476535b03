"""`--plot FILE`: how many drafted tokens the steps accepted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np

from globalres_jax.decoding.metrics import Metrics

_SUFFIXES = (".png", ".pdf", ".svg")


def check_plot(path: Path) -> None:
    """Whether a plot can be drawn and written, before there is anything to draw.

    Raises:
      ValueError: another kind of file, a folder that is not there, or no matplotlib.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--plot: {path} is none of {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir() or path.is_dir():
        wrong = path if path.is_dir() else path.parent
        raise ValueError(f"--plot: {wrong} is {'a' if path.is_dir() else 'no'} folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--plot: needs matplotlib, which is not installed; "
            "pip install 'globalres_jax[plot]'"
        )


def plot_accepted(path: Path, counts: Metrics | None) -> None:
    """Draws the share of steps by the number of drafted tokens that they accepted.

    Args:
      path: of the picture.
      counts: of some requests, leaves [B, ...]; None draws nothing.
    """
    if counts is None:
        return
    from matplotlib.figure import Figure

    counts = jax.tree.map(lambda x: np.asarray(x).sum(0), counts)
    histogram = counts.acceptance_histogram
    steps = max(int(counts.num_spec_steps), 1)
    share = histogram / steps
    accepted = np.arange(len(share))
    mean = float(accepted @ share)
    # No pyplot, which would look for a screen.
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(accepted, 100 * share, color="#4c72b0", width=0.8)
    axes.axvline(
        mean, color="#c44e52", linestyle="--", label=f"mean {mean:.2f}", zorder=0
    )
    labels = [f"{100 * x:.0f}" for x in share]
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.bar_label(bars, labels, padding=3, fontsize=9, bbox=behind)
    axes.set_xlabel("accepted drafted tokens of a step")
    axes.set_ylabel("steps (%)")
    axes.set_xticks(accepted)
    axes.set_title(f"{steps} steps, {mean + 1:.2f} tokens per target call", fontsize=11)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
