"""Time of one layer's race, and of verifying a whole tree by rules for trees.

    python benchmarks/layer.py [--vocab 49152] [--draft-top-k 256] [--shape 4x4]

Verification begins with the target's logits, as in a decoding step. Rows are synthetic:
Zipf-like logits, the target's a noisy copy of the draft's, other rows each time.
Medians, and the least in brackets: on a busy machine that is nearer to what it takes.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from drawn_trees import tree_of
from measure import call_seconds

import globalres_jax as gr
from globalres_jax.decoding.options import FilteredRows, broken_rows
from globalres_jax.numerics.rows import on_platform
from globalres_jax.transport.layer_drafts import SingleDrafts
from globalres_jax.transport.layer_plan import solve_layer
from globalres_jax.transport.newton import ProjectedNewton
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers import (
    Block,
    GreedyMultiPathBlock,
    LayerResolution,
    TopDown,
    Traversal,
)

RULES = {
    "one race per layer": LayerResolution(),
    "optimum per position": TopDown(gr.verifiers.GlobalResolution()),
    "traversal": Traversal(),
    "recursive rejection": TopDown(gr.verifiers.RecursiveRejection()),
    "multi-path block": GreedyMultiPathBlock(),
    "block": Block(),
}


def rows(key, num_rows: int, vocab_size: int, noise: float = 1.0):
    """Logits of target and draft, [R, V]."""
    key_order, key_noise = jax.random.split(key)
    zipf = -1.2 * jnp.log1p(jnp.arange(vocab_size, dtype=jnp.float32))
    keys = jax.random.split(key_order, num_rows)
    logits = jax.vmap(lambda key: jax.random.permutation(key, zipf))(keys)
    return logits + noise * jax.random.normal(key_noise, logits.shape), logits


def drawn(key, tree: TokenTree, args):
    """A tree drawn from its rows: tokens, logits, laws. Equal nodes' rows differ."""
    key_rows, key_tokens = jax.random.split(key)
    logits, q = rows(key_rows, tree.num_nodes, args.vocab)
    q = jax.nn.softmax(q)
    tokens, laws = jnp.zeros(tree.num_nodes, jnp.int32), []
    keys = jax.random.split(key_tokens, tree.num_nodes)
    for group in tree.groups:

        def make(row, n=group.num_children):
            return gr.IID(row, n, max_support=args.draft_top_k)

        laws.append(jax.vmap(make)(q[group.nodes]))
        sample = jax.vmap(lambda law, key: law.sample(key))
        tokens = tokens.at[group.children].set(sample(laws[-1], keys[group.nodes]))
    return tokens, logits, tuple(laws)


def one_layer(num_nodes: int, target, q):
    """The race of a layer of nodes with one draft each: [m, k]."""
    counts = jnp.ones(num_nodes, jnp.int32)
    rule = LayerResolution()
    solver = ProjectedNewton(maxiter=rule.maxiter, tol=rule.tol)
    return solve_layer(target, SingleDrafts(q), counts, solver)


def report(name: str, function, problems: list, repeats: int) -> None:
    """A line of the table."""
    each = [call_seconds(function, *args, repeats=repeats)[1] for args in problems]
    seconds = 1e3 * np.concatenate(each)
    print(f"| {name} | {np.median(seconds):.2f} ({seconds.min():.2f}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--draft-top-k", type=int, default=256)
    parser.add_argument("--shape", default="4x4")
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--rows", type=int, default=10, help="problems")
    parser.add_argument("--repeats", type=int, default=20, help="calls of each")
    args = parser.parse_args()
    print("| what | milliseconds (least) |")
    print("|---|---|")
    layers = []
    for key in jax.random.split(jax.random.key(0), args.rows):
        p, q = rows(key, 4, args.draft_top_k)
        layers.append((0.2 * jax.nn.softmax(p), jax.nn.softmax(q)))
    solve = jax.jit(lambda target, q: one_layer(4, target, q))
    report(f"a layer of 4 nodes x {args.draft_top_k}", solve, layers, args.repeats)
    tree = tree_of(args.shape)
    make = jax.jit(lambda key: drawn(key, tree, args))
    keys = jax.random.split(jax.random.key(1), args.rows)
    problems = [(key, *make(key)) for key in keys]
    for name in args.rules:
        rule = RULES[name]
        try:
            rule.check(tree, problems[0][-1])
        except (TypeError, ValueError):
            continue

        @jax.jit
        def walk(key, tokens, logits, laws, rule=rule):
            options = gr.SamplingOptions(temperature=jnp.float32(1))
            p = FilteredRows(logits, options, broken_rows(logits))
            with on_platform(jax.default_backend()):
                return rule.walk(key, tree, tokens, p.shown_to(rule), laws)

        report(f"{args.shape}, {name}", walk, problems, args.repeats)


if __name__ == "__main__":
    main()
