"""Pictures of token trees, by matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from globalres_jax.base import Array, Walk
from globalres_jax.tree import TokenTree

ACCEPTED, NEXT, OTHER = "#1a7f37", "#bf8700", "#8c959f"
#: Inches between levels, and between two nodes of one level.
_ACROSS, _DOWN = 2.0, 0.62


def draw_tree(
    tree: TokenTree,
    tokens: Array,
    tokenizer: Any,
    weights: Array | None = None,
    walk: Walk | None = None,
    axes: Any = None,
) -> Any:
    """Draws one drafted tree: its tokens, their weights, and what was accepted.

    Nodes that spell the same text are drawn as one, which has the weight of all.
    Accepted nodes are green, and the token emitted after them hangs on a dashed line.

    Args:
      tree: shape of the tree.
      tokens: [N] token at each node, of one tree.
      tokenizer: has `decode(tokens) -> str`.
      weights: [N] number in 0..1 of each node, which shades it, such as
        `LayerResolution().weights(...)`; None for no numbers.
      walk: how a rule went through the tree, or None.
      axes: matplotlib axes to draw on; a new figure of a fitting size if None.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is not there.
      ValueError: `tokens` or `weights` are not one number a node.
    """
    tokens = _of_nodes("tokens", tokens, tree)
    stands_for = np.asarray(np.argmax(tree.same_prefix(tokens), axis=1))
    heights = _heights(tree, stands_for)
    path = [] if walk is None else np.asarray(walk.nodes)[: int(walk.accept_length)]
    accepted = [0, *stands_for[path].tolist()] if walk is not None else []
    axes = _axes(tree, heights) if axes is None else axes
    if weights is not None:
        # One of the equal nodes may have the weight of all, or each its own.
        weights = _of_nodes("weights", weights, tree)
        weights = np.bincount(stands_for, weights, minlength=tree.num_nodes)
    times = np.bincount(stands_for, minlength=tree.num_nodes)
    for node, height in heights.items():
        depth = int(tree.depths[node])
        color = ACCEPTED if node in accepted else OTHER
        if node:
            above = heights[int(stands_for[tree.parents[node]])]
            _line(axes, (depth - 1, above), (depth, height), color)
        share = None if weights is None else float(weights[node])
        text = _label(shown(tokenizer, int(tokens[node])), share, node and times[node])
        _box(axes, (depth, height), text, color, share or 0.0)
    lowest = min(heights.values())
    if walk is not None:
        last, lowest = accepted[-1], lowest - 1
        start = int(tree.depths[last]), heights[last]
        _draw_next(axes, start, lowest, shown(tokenizer, int(walk.next_token)))
    axes.set_xlim(-0.5, tree.depth + 1.5)
    axes.set_ylim(lowest - 0.6, max(heights.values()) + 0.6)
    axes.axis("off")
    return axes


def _label(token: str, weight: float | None, drafts: int) -> str:
    """What a node says: its token, its weight if it has one, how many drafts it is."""
    text = token if weight is None else f"{token}\n{weight:.2f}"
    return f"{text} ({drafts} drafts)" if drafts > 1 else text


def _draw_next(axes: Any, start: tuple, height: float, text: str) -> None:
    """The token that was emitted after the last accepted node, which is at `start`."""
    end = start[0] + 1, height
    _line(axes, start, end, NEXT, "--")
    _box(axes, end, text + "\nnext token", NEXT, 0.0)


def shown(tokenizer: Any, token: int) -> str:
    """A token's text with its spaces and ends of lines visible."""
    return tokenizer.decode([token]).replace(" ", "\u00b7").replace("\n", "\u21b5")


def _of_nodes(name: str, values: Array, tree: TokenTree) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (tree.num_nodes,):
        raise ValueError(
            f"{name}: expected shape ({tree.num_nodes},), one for each node of one "
            f"tree, got {values.shape}"
        )
    return values


def _heights(tree: TokenTree, stands_for: np.ndarray) -> dict[int, float]:
    """Height of each node that stands for itself: leaves in turn, parents amid."""
    children: dict[int, list[int]] = {}
    for node in range(1, tree.num_nodes):
        if stands_for[node] == node:
            above = int(stands_for[tree.parents[node]])
            children.setdefault(above, []).append(node)
    heights: dict[int, float] = {}

    def place(node: int) -> float:
        below = [place(child) for child in children.get(node, [])]
        lowest = min(heights.values(), default=1.0) - 1
        heights[node] = float(np.mean(below)) if below else lowest
        return heights[node]

    place(0)
    return heights


def _axes(tree: TokenTree, heights: dict[int, float]) -> Any:
    try:
        plt = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError(
            "draw_tree: needs matplotlib; pip install matplotlib"
        ) from error
    rows = max(heights.values()) - min(heights.values()) + 1
    size = _ACROSS * (tree.depth + 2), _DOWN * rows + 1.4
    return plt.subplots(figsize=size, layout="constrained")[1]


def _box(axes: Any, at: tuple, text: str, edge: str, share: float) -> None:
    """A node, the darker the more of its share of 1 it has."""
    face = "#fff8c5" if edge == NEXT else _shade(share)
    style = {"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": edge}
    style["linewidth"] = 1 if edge == OTHER else 2.5
    color = "white" if share > 0.6 else "black"
    # A dollar sign is a token like any other, and no formula.
    axes.text(
        *at,
        text,
        ha="center",
        va="center",
        fontsize=9,
        color=color,
        bbox=style,
        parse_math=False,
    )


def _line(axes: Any, start: tuple, end: tuple, color: str, style: str = "-") -> None:
    width = 1 if color == OTHER else 2.5
    axes.plot(*zip(start, end, strict=True), style, c=color, lw=width, zorder=0)


def _shade(share: float) -> tuple[float, float, float]:
    """From white to a dark blue."""
    light, dark = np.array([0.97, 0.98, 1.0]), np.array([0.03, 0.27, 0.58])
    return tuple(light + min(max(share, 0.0), 1.0) * (dark - light))
