"""Time per position of every verification rule, on large vocabularies.

    python benchmarks/rules.py [--vocab 32000 131072] [--num-drafts 4 8] [--out FOLDER]

A position is what a decoding step does there: decide from p, the law and the drafts,
and draw the token. Rows are synthetic: Zipf-like logits, the draft's a noisy copy of
the target's. Drafts come from the `--top-k` most likely tokens of q; p is whole.
Float32. Each is timed in turns with recursive rejection of i.i.d. drafts, compilation
apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from measure import time_call
from rich.console import Console
from rich.progress import track

import globalres_jax as gr
from globalres_jax.base import Array
from globalres_jax.numerics.categorical import uniforms
from globalres_jax.numerics.rows import map_rows
from globalres_jax.transforms import probabilities
from globalres_jax.tree_verifiers.top_down import draw

BATCH = 64


def draft_law(name: str, q: Array, n: int, top_k: int) -> gr.draft_laws.DraftLaw:
    """The law called `name`; different drafters are rotations of the same one."""
    if name == "independent":
        return gr.Independent(jnp.stack([q, jnp.roll(q, 1)] * (n // 2)), top_k)
    if name == "deterministic":
        return gr.Deterministic(jax.lax.top_k(q, n)[1], q.shape[0])
    return gr.draft_laws.BY_NAME[name](q, n, max_support=top_k)


#: Rule and law; the first one is what the others are measured against.
CASES = (
    ("recursive-rejection", "iid"),
    ("recursive-rejection", "without-replacement"),
    ("recursive-rejection", "independent"),
    ("naive", "iid"),
    ("k-seq", "iid"),
    ("khisti", "iid"),
    ("target-sample", "iid"),
    ("target-sample", "deterministic"),
    ("greedy-draft", "top-plus-sample"),
    ("global-resolution", "iid"),
    ("global-resolution", "top-plus-sample"),
    ("global-resolution", "deterministic"),
)


@dataclasses.dataclass
class Cell:
    """One line of the table: milliseconds a position, and over the reference's."""

    rule: str
    law: str
    vocab_size: int
    n: int
    one_ms: float
    batch_ms: float
    one_ratio: float
    batch_ratio: float
    compile_s: float


def rows(key: Array, vocab_size: int, top_k: int) -> tuple[Array, Array]:
    """Rows p and q [BATCH, V]: Zipf of exponent 1.2, noise of 1 nat, shuffled."""
    key_shuffle, key_noise = jax.random.split(key)
    zipf = -1.2 * jnp.log(jnp.arange(1, vocab_size + 1, dtype=jnp.float32))
    keys = jax.random.split(key_shuffle, BATCH)
    target = jax.vmap(lambda k: jax.random.permutation(k, zipf))(keys)
    draft = target + jax.random.normal(key_noise, target.shape)
    return probabilities(target, 1.0), probabilities(draft, 1.0, top_k=top_k)


class Position(NamedTuple):
    """A rule under a law, compiled for one position and for a batch."""

    one: Callable
    batched: Callable
    rows: tuple[Array, ...]
    compile_s: float

    def first(self, count: int) -> list[tuple[Array, ...]]:
        """Arguments of `one`, for the first rows."""
        return [tuple(x[i] for x in self.rows) for i in range(count)]


def prepare(case: tuple[str, str], p: Array, q: Array, n: int, top_k: int) -> Position:
    """Draws the drafts and compiles."""
    rule, law_name = gr.verifiers.BY_NAME[case[0]](), case[1]

    def position(key: Array, p: Array, q: Array, drafts: Array) -> Array:
        law = draft_law(law_name, q, n, top_k)
        numbers = uniforms(key, (2,))
        return draw(numbers, lambda: rule.decide(p, law, drafts), drafts, p)

    def drafted(key: Array, q: Array) -> Array:
        return draft_law(law_name, q, n, top_k).sample(key)

    keys = jax.random.split(jax.random.key(1), (2, BATCH))
    drafts = jax.lax.map(lambda row: drafted(*row), (keys[0], q))
    rows = keys[1], p, q, drafts
    start = time.perf_counter()
    one = jax.jit(position).lower(*(x[0] for x in rows)).compile()
    compile_s = time.perf_counter() - start
    batched = jax.jit(lambda *rows: map_rows(position, *rows))
    return Position(one, batched, rows, round(compile_s, 2))


def in_turns(calls: list[tuple], repeats: int) -> np.ndarray:
    """Median milliseconds of each `(function, *arguments)`, one after the other."""
    seconds = [
        [time_call(function, *args, repeats=1)[1] for function, *args in calls]
        for _ in range(repeats)
    ]
    return 1e3 * np.median(seconds, axis=0)


def measure(case: tuple[str, str], position: Position, reference: Position) -> Cell:
    """Times one rule under one law, in turns with the reference."""
    pair = position, reference
    singles = zip(*(x.first(8) for x in pair), strict=True)
    one = np.median(
        [
            in_turns([(x.one, *row) for x, row in zip(pair, rows, strict=True)], 5)
            for rows in singles
        ],
        axis=0,
    )
    batch = in_turns([(x.batched, *x.rows) for x in pair], 5) / BATCH
    return Cell(
        *case,
        vocab_size=position.rows[1].shape[1],
        n=position.rows[3].shape[1],
        one_ms=float(one[0]),
        batch_ms=float(batch[0]),
        one_ratio=float(one[0] / one[1]),
        batch_ratio=float(batch[0] / batch[1]),
        compile_s=position.compile_s,
    )


def markdown(cells: list[Cell]) -> str:
    """A table for each vocabulary and number of drafts."""
    lines = []
    for vocab_size, n in dict.fromkeys((c.vocab_size, c.n) for c in cells):
        block = [c for c in cells if (c.vocab_size, c.n) == (vocab_size, n)]
        lines += [
            f"\nV = {vocab_size:,}, n = {n}: milliseconds a position\n",
            f"| rule | law | one | {BATCH} at once | times recursive rejection | "
            "compilation, s |",
            "|---|---|---|---|---|---|",
        ]
        for c in block:
            lines.append(
                f"| {c.rule} | {c.law} | {c.one_ms:.2f} | {c.batch_ms:.2f} | "
                f"{c.one_ratio:.1f}, {c.batch_ratio:.1f} | {c.compile_s:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 131_072])
    parser.add_argument("--num-drafts", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--top-k", type=int, default=1000, help="of the draft")
    parser.add_argument("--rules", nargs="+", choices=sorted(gr.verifiers.BY_NAME))
    parser.add_argument("--out", type=Path, help="folder for rules.{md,json}")
    args = parser.parse_args()

    chosen = [c for c in CASES if args.rules is None or c[0] in args.rules]
    work = [(v, n, c) for v in args.vocab for n in args.num_drafts for c in chosen]
    cells = []
    console = Console(stderr=True)
    made = functools.lru_cache(maxsize=1)(
        lambda size: rows(jax.random.key(size), size, args.top_k)
    )
    reference = functools.lru_cache(maxsize=1)(
        lambda size, n: prepare(CASES[0], *made(size), n, args.top_k)
    )
    for vocab_size, n, case in track(work, "rules", console=console, transient=True):
        position = prepare(case, *made(vocab_size), n, args.top_k)
        cells.append(measure(case, position, reference(vocab_size, n)))
    report = markdown(cells)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores\n{report}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "rules.md").write_text(report + "\n", "utf-8")
        text = json.dumps([dataclasses.asdict(c) for c in cells], indent=2) + "\n"
        (args.out / "rules.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
