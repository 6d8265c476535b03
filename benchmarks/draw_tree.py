"""A picture of one drafted tree, the weights of its nodes, and what was accepted.

    python benchmarks/draw_tree.py --out FILE.png [--shape 4x4] [--prompt TEXT]

The pair drafts a tree after the prompt, `LayerResolution` weighs its nodes and walks it
once. Drafts that spell the same text are one node. (For the names of shapes see
`drawn_trees.tree_of`.)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from drawn_trees import Contexts, tree_of, trees

from globalres_jax.commands.loading import load_measured
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers import LayerResolution

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ACCEPTED, OTHER = "#1a7f37", "#8c959f"


class Drawn(NamedTuple):
    """A verified tree, its equal nodes joined.

    Attributes:
      tokens: [N] token at each node.
      weights: [N] of each node.
      stands_for: [N] the first node that spells the same.
      accepted: the accepted nodes, from the root on.
      next_token: the token emitted after them.
    """

    tokens: np.ndarray
    weights: np.ndarray
    stands_for: np.ndarray
    accepted: list[int]
    next_token: int


def verified(pair, tree: TokenTree, args) -> Drawn:
    """Drafts a tree after the prompt and verifies it."""
    ids = np.asarray(pair[0].tokenizer.encode(args.prompt), np.int32)
    context = Contexts(ids[None], np.array([len(ids)]))
    (drawn,) = trees(pair, context, tree, args.temp, args)
    tokens, p, laws = jax.tree.map(lambda x: x[0], drawn)
    rule = LayerResolution()
    weights = np.array(jax.jit(rule.weights, static_argnums=0)(tree, tokens, p, laws))
    key = jax.random.key(args.seed)
    walk = jax.jit(rule.walk, static_argnums=1)(key, tree, tokens, p, laws)
    stands_for = np.asarray(jnp.argmax(tree.same_prefix(tokens), axis=1))
    # One of the equal nodes has the weight of all.
    total = np.bincount(stands_for, weights, minlength=tree.num_nodes)
    path = np.asarray(walk.nodes)[: int(walk.accept_length)]
    accepted = [0, *stands_for[path].tolist()]
    return Drawn(np.asarray(tokens), total, stands_for, accepted, int(walk.next_token))


def places(tree: TokenTree, stands_for: np.ndarray) -> dict[int, float]:
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


def shown(tokenizer, token: int) -> str:
    """A token with its spaces and ends of lines visible."""
    return tokenizer.decode([token]).replace(" ", "\u00b7").replace("\n", "\u21b5")


def picture(tree: TokenTree, drawn: Drawn, tokenizer, args) -> None:
    """Writes the picture to `args.out`."""
    heights = places(tree, drawn.stands_for)
    times = np.bincount(drawn.stands_for, minlength=tree.num_nodes)
    accepted, shades = set(drawn.accepted), plt.get_cmap("Blues")
    width, height = 2.0 * (tree.depth + 2), 0.62 * len(set(heights.values())) + 1.4
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")

    def box(x: float, y: float, text: str, face, edge: str, dark: bool) -> None:
        style = {"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": edge}
        style["linewidth"] = 1 if edge == OTHER else 2.5
        color = "white" if dark else "black"
        axes.text(
            x, y, text, ha="center", va="center", fontsize=9, color=color, bbox=style
        )

    def edge(start, end, color: str, style: str = "-") -> None:
        line = 1 if color == OTHER else 2.5
        axes.plot(*zip(start, end, strict=True), style, c=color, lw=line, zorder=0)

    for node, y in heights.items():
        depth, weight = int(tree.depths[node]), float(drawn.weights[node])
        color = ACCEPTED if node in accepted else OTHER
        if node:
            above = int(drawn.stands_for[tree.parents[node]])
            edge((depth - 1, heights[above]), (depth, y), color)
        text = shown(tokenizer, int(drawn.tokens[node]))
        often = f" ({times[node]} drafts)" if times[node] > 1 else ""
        label = f"{text}\n{weight:.2f}{often}" if node else f"{text}\n1"
        box(depth, y, label, shades(0.9 * weight), color, weight > 0.6)
    last = drawn.accepted[-1]
    start = int(tree.depths[last]), heights[last]
    end = start[0] + 1, min(heights.values()) - 1
    edge(start, end, "#bf8700", "--")
    text = f"{shown(tokenizer, drawn.next_token)}\nnext token"
    box(*end, text, "#fff8c5", "#bf8700", False)
    axes.set_title(
        f"{args.prompt!r}: {len(accepted) - 1} drafts accepted (green); "
        "numbers are the weights of the nodes,\nwhich sum to at most 1 in each layer",
        fontsize=10,
    )
    axes.set_xlim(-0.5, tree.depth + 1.5)
    axes.set_ylim(end[1] - 0.6, max(heights.values()) + 0.6)
    axes.axis("off")
    figure.savefig(args.out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded-draft")
    parser.add_argument("--prompt", default="ROMEO:\nI will")
    parser.add_argument("--shape", default="4x4")
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--draft-top-k", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.batch = 1
    *pair, _ = load_measured(args.target, args.draft, jnp.dtype("float32"))
    tree = tree_of(args.shape)
    picture(tree, verified(pair, tree, args), pair[0].tokenizer, args)


if __name__ == "__main__":
    main()
