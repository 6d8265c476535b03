"""Mean acceptance rate of every rule, and of the optimum, on a file of logits."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from globalres_jax.base import Array
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.draft_laws import IID, WithoutReplacement
from globalres_jax.transforms import probabilities
from globalres_jax.transport.plan import optimal_acceptance_rate
from globalres_jax.verifiers import BY_NAME, GlobalResolution, SingleDraft

#: Draws a position for rules whose acceptance rate has no closed form.
SAMPLES = 256
#: Largest support for which drafts without replacement, three and more, are solved.
CLOCKS_SUPPORT = 256


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
    if args.num_drafts < 1:
        raise ValueError(f"--num-drafts: must be at least 1, got {args.num_drafts}")
    target, draft = load_logits(args.file)
    p, q = (
        probabilities(x, args.temp, args.top_k, args.top_p) for x in (target, draft)
    )
    support = 1 if args.temp == 0 else args.top_k
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
        print(json.dumps(described))
        return
    console = Console(highlight=False)
    title = f"{len(p)} positions, {p.shape[1]} tokens, {args.num_drafts} drafts"
    for name, found in measured.items():
        console.print(_table(f"{title}, {name}", found))
    if args.law == "all":
        console.print(f"Best law per position: {adaptive:.4f}")


def _table(title: str, found: dict) -> Table:
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
    return table


def load_logits(path: Path) -> tuple[Array, Array]:
    """Reads `target` and `draft` logits [rows, V] as float32.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or shapes that differ, or NaN.
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
            arrays[name] = array = array.view(jnp.bfloat16)
        if np.isnan(array.astype(np.float32)).any():
            raise ValueError(f"{name}: contains NaN")
    target, draft = arrays["target"], arrays["draft"]
    if target.shape != draft.shape:
        raise ValueError(
            f"draft: has shape {draft.shape}, target {target.shape}; they must agree"
        )
    return jnp.asarray(target, jnp.float32), jnp.asarray(draft, jnp.float32)


def compare_laws(
    p: Array, q: Array, num_drafts: int, max_support: int | None, laws: list[str]
) -> tuple[dict, float]:
    """Optimum and rules of every law, and what the best law per position reaches.

    Args:
      p: [rows, V] target distributions.
      q: [rows, V] draft distributions.
      num_drafts: n; the single-draft rule always has one.
      max_support: most tokens of a row of `q` above zero, if known.
      laws: names of draft laws. A position where fewer than n tokens can be drafted
        counts with the drafts there are.

    Returns:
      For each law a dict of `optimum` and `rules`; the mean over positions of the
      largest optimum.
    """
    measured = {}
    optima, best = mean_optima(p, q, num_drafts, laws)
    for name in laws:
        rules = {}
        for rule_name, rule in BY_NAME.items():
            found = _rule_rates(rule(), LAWS[name], p, q, num_drafts, max_support)
            if found is not None:
                rules[rule_name] = found
        measured[name] = {"optimum": optima[name], "rules": rules}
    return measured, best


def mean_optima(
    p: Array, q: Array, num_drafts: int, laws: list[str]
) -> tuple[dict[str, float], float]:
    """Mean optimum of each law, and of the best law at each position.

    The optimum costs one sort, so that a decoder could choose the law by it.
    """
    rows = {
        name: _rows(optimal_acceptance_rate, LAWS[name], p, q, num_drafts)
        for name in laws
    }
    best = np.max(list(rows.values()), axis=0)
    return {name: float(np.mean(r)) for name, r in rows.items()}, float(np.mean(best))


def _rows(rate, make_law, p: Array, q: Array, *options) -> np.ndarray:
    """[rows] of `rate(p, law)`, one row after another."""

    def one(row):
        return rate(row[0], make_law(row[1], *options))

    return np.asarray(jax.jit(lambda rows: jax.lax.map(one, rows))((p, q)))


def _rule_rates(rule, make_law, p, q, num_drafts, max_support) -> dict | None:
    """Mean acceptance of a rule, in closed form or sampled; None if not served."""
    if isinstance(rule, SingleDraft):
        if make_law is not IID:
            return None
        num_drafts = 1
    support = max_support or q.shape[1]
    try:
        rule.check(make_law(jnp.full(support, 1 / support), num_drafts))
    except (TypeError, ValueError):
        return None
    by_clocks = make_law is WithoutReplacement and num_drafts > 2
    if isinstance(rule, GlobalResolution) and by_clocks and support > CLOCKS_SUPPORT:
        return None
    options = (num_drafts, max_support)
    try:
        rates = _rows(rule.acceptance_rate, make_law, p, q, *options)
        return {"acceptance_rate": float(rates.mean())}
    except TypeError:
        return _sampled_rates(rule, make_law, p, q, options)


def _sampled_rates(rule, make_law, p, q, options) -> dict:
    """Mean and standard error over `SAMPLES` draws at each position."""
    keys = jax.random.split(jax.random.key(0), len(p))

    def one(row):
        p, q, key = row
        law = make_law(q, *options)
        plan = rule.prepare(p, law)

        def accepted(key):
            drafts = law.sample(key)
            decision = rule.resolve(plan, p, law, drafts)
            # Distinct drafts that the residual emits count as accepted, too.
            return jnp.sum(decision.accept) + jnp.sum(
                jnp.where(drafts >= 0, decision.residual[drafts], 0)
            )

        rates = jax.lax.map(accepted, jax.random.split(key, SAMPLES))
        return jnp.mean(rates), jnp.var(rates) / SAMPLES

    mean, variance = jax.jit(lambda rows: jax.lax.map(one, rows))((p, q, keys))
    error = jnp.sqrt(jnp.mean(variance) / len(p))
    return {"acceptance_rate": float(mean.mean()), "standard_error": float(error)}
