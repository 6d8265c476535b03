"""A picture of one drafted tree, the weights of its nodes, and what was accepted.

    python benchmarks/draw_tree.py --out FILE.png [--shape 4x4] [--prompt TEXT]

The pair drafts a tree after the prompt, `LayerResolution` weighs its nodes and walks it
once. Drafts that spell the same text are one node. (For the names of shapes see
`drawn_trees.tree_of`.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from drawn_trees import Contexts, tree_of, trees

from globalres_jax.commands.loading import load_measured
from globalres_jax.drawing import draw_tree
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers import LayerResolution

matplotlib.use("Agg")


def picture(pair, tree: TokenTree, args) -> None:
    """Drafts a tree after the prompt, verifies it, and draws both to `args.out`."""
    tokenizer = pair[0].tokenizer
    ids = np.asarray(tokenizer.encode(args.prompt), np.int32)
    context = Contexts(ids[None], np.array([len(ids)]))
    (drawn,) = trees(pair, context, tree, args.temp, args)
    tokens, p, laws = jax.tree.map(lambda x: x[0], drawn)
    rule = LayerResolution()
    weights = jax.jit(rule.weights, static_argnums=0)(tree, tokens, p, laws)
    key = jax.random.key(args.seed)
    walk = jax.jit(rule.walk, static_argnums=1)(key, tree, tokens, p, laws)
    axes = draw_tree(tree, tokens, tokenizer, weights, walk)
    axes.set_title(
        f"{args.prompt!r}: {int(walk.accept_length)} drafts accepted (green); "
        "numbers are the weights of the nodes,\nwhich sum to at most 1 in each layer",
        fontsize=10,
    )
    axes.figure.savefig(args.out, dpi=90)


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
    picture(pair, tree, args)


if __name__ == "__main__":
    main()
