"""Every rule for trees on the same drawn trees: drafts accepted, and time to verify.

    python benchmarks/trees.py [--shapes 4x4 8 3+4x2 3-2-1] [--temp 0.3 0.6 1.0]

The target's own texts are cut at random places, and a tree is drawn after each. Every
rule says how many drafts of that tree it accepts on average (`expected_accepted`), so
that rules differ by what they do and not by what was drawn. With standard errors over
trees. `--bound` adds small trees, enumerated, against the bound for all rules, and
`--speed` tokens a second of the best shape and rule of each size. It takes long: what
`--json` wrote may be `--kept`, and is not measured again. Names of shapes:
`drawn_trees.tree_of`. Prompts come from a file with one a line, or MT-Bench's JSONL.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decode import compare, print_speeds
from drawn_trees import SHAPES, contexts, read_prompts, tree_of, trees
from measure import call_seconds
from tree_bound import print_bound, small_trees

import globalres_jax as gr
from globalres_jax.commands.loading import load_measured
from globalres_jax.numerics.rows import map_rows, on_platform
from globalres_jax.tree_verifiers import (
    Block,
    GreedyMultiPathBlock,
    LayerResolution,
    TopDown,
    Traversal,
    expected_accepted,
)

RULES = {
    "one race per layer": LayerResolution(),
    "optimum per position": TopDown(gr.verifiers.GlobalResolution()),
    "Khisti": TopDown(gr.verifiers.Khisti()),
    "traversal": Traversal(),
    "recursive rejection": TopDown(gr.verifiers.RecursiveRejection()),
    "k-SEQ": TopDown(gr.verifiers.KSeq()),
    "multi-path block": GreedyMultiPathBlock(),
    "block": Block(),
}


def serves(rule, tree, laws) -> bool:
    """Whether the rule verifies such a tree."""
    try:
        rule.check(tree, laws)
    except (TypeError, ValueError):
        return False
    return True


@functools.partial(jax.jit, static_argnames=("rule", "tree"))
def accepted(rule, tree, drawn):
    """What the rule accepts of each of the drawn trees: [B]."""
    with on_platform(jax.default_backend()):
        return map_rows(lambda *row: expected_accepted(rule, tree, *row), *drawn)


@functools.partial(jax.jit, static_argnames=("rule", "tree"))
def walk(rule, tree, key, drawn):
    with on_platform(jax.default_backend()):
        return rule.walk(key, tree, *drawn)


def milliseconds(rule, tree, drawn, repeats: int) -> float:
    """Median time of a walk, over the drawn trees."""
    rows = [jax.tree.map(lambda x, i=i: x[i], drawn) for i in range(len(drawn[0]))]
    key = jax.random.key(0)
    each = [
        call_seconds(functools.partial(walk, rule, tree), key, row, repeats=repeats)[1]
        for row in rows
    ]
    return 1e3 * float(np.median(np.concatenate(each)))


def measured(pair, found, shape: str, temperature: float, args) -> list[dict]:
    """One row for each rule that verifies trees of a shape."""
    tree, lengths = tree_of(shape), {}
    for drawn in trees(pair, found, tree, temperature, args):
        for name in args.rules:
            if serves(RULES[name], tree, drawn[2]):
                mine = np.asarray(accepted(RULES[name], tree, drawn))
                lengths.setdefault(name, []).append(mine)
    lengths = {name: np.concatenate(parts) for name, parts in lengths.items()}
    first = next(iter(lengths.values()))
    rows = []
    for name, mine in lengths.items():
        row = {
            "nodes": tree.num_nodes - 1,
            "shape": shape,
            "temperature": temperature,
            "rule": name,
            "trees": len(mine),
            "accepted": float(mine.mean()),
            "standard_error": float(mine.std() / np.sqrt(len(mine))),
            "less_than_first": float((first - mine).mean()),
            "its_standard_error": float((first - mine).std() / np.sqrt(len(mine))),
        }
        if args.repeats:
            row["verify_ms"] = milliseconds(RULES[name], tree, drawn, args.repeats)
        rows.append(row)
    return rows


def print_table(rows: list[dict], rules: list[str]) -> None:
    """A line for each shape and temperature; in brackets milliseconds to verify."""
    print("| drafts | shape | temperature | " + " | ".join(rules) + " |")
    print("|---" * (len(rules) + 3) + "|")
    cells = {(r["shape"], r["temperature"], r["rule"]): r for r in rows}
    for shape, nodes in dict.fromkeys((r["shape"], r["nodes"]) for r in rows):
        for temperature in dict.fromkeys(r["temperature"] for r in rows):
            line = [str(nodes), shape, str(temperature)]
            for rule in rules:
                row = cells.get((shape, temperature, rule))
                cell = ""
                if row is not None:
                    cell = f"{row['accepted']:.2f} +- {row['standard_error']:.2f}"
                    if "verify_ms" in row:
                        cell += f" ({row['verify_ms']:.2f})"
                line.append(cell)
            print("| " + " | ".join(line) + " |")


def best_ways(pair, rows: list[dict], args) -> dict[str, tuple]:
    """Plain decoding, and of each size the shape and rule that accept most."""
    base = gr.SpeculativeConfig(temperature=args.temp[-1], draft_top_k=args.draft_top_k)
    ways = {"plain": (None, base)}
    for size, shapes in SHAPES.items():
        found = [
            row
            for row in rows
            if row["temperature"] == args.temp[-1] and row["shape"] in shapes
        ]
        if not found:
            continue
        best = max(found, key=lambda row: row["accepted"])
        config = gr.SpeculativeConfig(
            tree=tree_of(best["shape"]),
            verifier=RULES[best["rule"]],
            temperature=args.temp[-1],
            draft_top_k=args.draft_top_k,
        )
        ways[f"{size}: {best['shape']}, {best['rule']}"] = pair[1], config
    return ways


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded-draft")
    parser.add_argument("--prompts", type=Path, help="one a line, or .jsonl: turns")
    shapes = [shape for same in SHAPES.values() for shape in same]
    parser.add_argument("--shapes", nargs="*", default=shapes)
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--temp", type=float, nargs="*", default=[0.3, 0.6, 1.0])
    parser.add_argument("--draft-top-k", type=int, default=100)
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--batch", type=int, default=20, help="trees at once")
    parser.add_argument("--text", type=int, default=64, help="tokens of each text")
    parser.add_argument("--cuts", type=int, default=5, help="trees of each text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="0: no times")
    parser.add_argument("--bound", type=int, default=0, help="so many small trees")
    parser.add_argument("--speed", type=int, default=0, help="so many timed texts")
    parser.add_argument(
        "--kept", type=Path, nargs="*", default=[], help="rows of earlier --json files"
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--plot", type=Path, help="also draw them here")
    return parser.parse_args()


def kept_rows(paths: list[Path]) -> list[dict]:
    """The rows of files, of equal cells the last, in the order of `SHAPES`."""
    kept = [
        row for path in paths for row in json.loads(path.read_text("utf-8"))["trees"]
    ]
    cells = {(row["shape"], row["temperature"], row["rule"]): row for row in kept}
    order = [shape for same in SHAPES.values() for shape in same]
    places = {shape: place for place, shape in enumerate(order)}
    return sorted(cells.values(), key=lambda row: places.get(row["shape"], len(order)))


def write(path: Path | None, everything: dict) -> None:
    if path is not None:
        path.write_text(json.dumps(everything, indent=2) + "\n", "utf-8")


def main() -> None:
    args = arguments()
    *pair, _ = load_measured(args.target, args.draft, jnp.dtype("float32"))
    prompts = read_prompts(args.prompts)
    at = functools.cache(lambda t: contexts(pair, prompts, t, args))
    rows = kept_rows(args.kept)
    known = {(row["shape"], row["temperature"]) for row in rows}
    for shape in args.shapes:
        for temperature in args.temp:
            if (shape, temperature) not in known:
                rows += measured(pair, at(temperature), shape, temperature, args)
        # It takes long, and something is better than nothing.
        write(args.json, {"trees": rows})
    print_table(rows, args.rules)
    everything = {"trees": rows}
    if args.bound:
        everything["bound"] = small_trees(pair, at(args.temp[-1]), RULES, args)
        print_bound(everything["bound"])
    if args.speed:
        ways = best_ways(pair, rows, args)
        everything["speed"] = compare(ways, pair[0], 64, args.speed)
        print_speeds(everything["speed"])
    write(args.json, everything)
    if args.plot:
        from tree_plots import plot_accepted

        plot_accepted(rows, args.plot)


if __name__ == "__main__":
    main()
