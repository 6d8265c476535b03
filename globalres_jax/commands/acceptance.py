"""Mean acceptance rate of every rule, and of the optimum, on a file of logits."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from globalres_jax.base import Array
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.evaluation import compare_laws
from globalres_jax.transforms import check_filters, probabilities
from globalres_jax.tree import MOST_NODES
from globalres_jax.validation import LARGEST, as_integer

SUMMARY = "Mean acceptance rate of every rule, and of the optimum, on a file of logits."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "file", type=Path, help=".npz with logits `target` and `draft`, [rows, V]"
    )
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, help="filter target and draft alike")
    parser.add_argument("--top-p", type=float)
    parser.add_argument(
        "--law",
        choices=[*LAWS, "all"],
        default="iid",
        help="how the drafts are drawn; `all` compares, and adds the best per position",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object only")


def run(args: argparse.Namespace) -> None:
    """Reads the logits, measures every rule, prints."""
    as_integer("--num-drafts", args.num_drafts, 1, MOST_NODES)
    top_k = None if args.top_k is None else min(args.top_k, LARGEST)
    check_filters(args.temp, top_k, args.top_p, None)
    target, draft = load_logits(args.file)
    p, q = (probabilities(x, args.temp, top_k, args.top_p) for x in (target, draft))
    support = 1 if args.temp == 0 else top_k
    laws = list(LAWS) if args.law == "all" else [args.law]
    measured, adaptive = compare_laws(p, q, args.num_drafts, support, laws)
    described = {
        "rows": len(p),
        "vocab_size": p.shape[1],
        "num_drafts": args.num_drafts,
        **measured[laws[0]],
    }
    if args.law == "all":
        described |= {"laws": measured, "best_law_per_position": adaptive}
    if args.json:
        print(json.dumps(described, allow_nan=False))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    title = f"{len(p)} positions, {p.shape[1]} tokens, {args.num_drafts} drafts"
    for name, found in measured.items():
        console.print(_table(f"{title}, {name}", found))
    if args.law == "all":
        console.print(f"Best law per position: {adaptive:.4f}")


def _table(title: str, found: dict) -> Table:
    """The optimum, every rule that was measured, and why the others were not."""
    table = Table(title=title)
    table.add_column("rule")
    table.add_column("acceptance rate", justify="right")
    table.add_column("below optimum (points)", justify="right")
    optimum = found["optimum"]
    table.add_row("optimum", f"{optimum:.4f}", "")
    for name, rule in found["rules"].items():
        rate, error = rule["acceptance_rate"], rule.get("standard_error")
        spread = "" if error is None else f" ± {error:.4f}"
        below = f"{100 * (optimum - rate):.2f}"
        table.add_row(name, f"{rate:.4f}{spread}", below)
    for name, reason in found["not_measured"].items():
        table.add_row(name, "-", reason)
    return table


def load_logits(path: Path) -> tuple[Array, Array]:
    """Reads `target` and `draft` logits [rows, V] as float32.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or shapes that differ, NaN, or a row of -inf alone.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file: no such file: {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = sorted(archive.files)
            arrays = {
                name: archive[name] for name in ("target", "draft") if name in names
            }
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"file: {path} is no .npz archive: {error}") from error
    if len(arrays) < 2:
        raise ValueError(f"file: {path} has arrays {names}, needs target and draft")
    for name, array in arrays.items():
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fV":
            raise ValueError(
                f"{name}: expected floating point [rows, V], got "
                f"{array.dtype} {array.shape}"
            )
        if array.dtype.kind == "V":  # numpy stores bfloat16 as raw two-byte items
            if array.dtype.itemsize != 2:
                raise ValueError(f"{name}: expected floating point, got {array.dtype}")
            array = array.view(jnp.bfloat16)
        arrays[name] = _relative(name, array)
    target, draft = arrays["target"], arrays["draft"]
    if target.shape != draft.shape:
        raise ValueError(
            f"draft: has shape {draft.shape}, target {target.shape}; they must agree"
        )
    return jnp.asarray(target), jnp.asarray(draft)


def _relative(name: str, logits: np.ndarray) -> np.ndarray:
    """Logits [rows, V] as float32; rows that do not fit it with their largest at 0.

    What is infinite beside others has all mass.

    Raises:
      ValueError: a row that stands for no distribution; it is named.
    """
    wide = logits.astype(np.float64)
    if np.isnan(wide).any():
        raise ValueError(f"{name}: contains NaN")
    largest = wide.max(axis=1, keepdims=True)
    empty = np.flatnonzero(largest[:, 0] == -np.inf)
    if empty.size:
        raise ValueError(f"{name}: row {empty[0]} is -inf throughout: no token is left")
    certain = np.where(wide == np.inf, 0.0, -np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        below = np.where(largest == np.inf, certain, wide - largest)
        fits = np.abs(largest) < np.finfo(np.float32).max
        return np.where(fits, wide, below).astype(np.float32)
