"""Acceptance of every rule under every draft law, and of the optimum per law.

    python benchmarks/acceptance.py [--logits FILE.npz] [--out FOLDER]

A table of rules at one setting, the optimum over top-k and n (as in Figure 1 of
arXiv 2511.15898), and the optimum of each law over temperature: where do different
drafts beat i.i.d. ones, and what would the best law at each position reach?
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measure import logits_pair

from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.evaluation import compare_laws, mean_optima
from globalres_jax.transforms import probabilities

TOP_K = (5, 10, 50, 200, 1000)
NUM_DRAFTS = (1, 2, 3, 4, 6, 8)
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
TITLES = {
    "iid": "i.i.d.",
    "without-replacement": "without replacement",
    "top-plus-sample": "top n - 1 and one sample",
    "best": "best law at each position",
}


def distributions(target, draft, temperature: float, top_k: int):
    """p and q [rows, m] on the tokens of either, an equal problem."""
    p, q = (np.asarray(probabilities(x, temperature, top_k)) for x in (target, draft))
    used = np.flatnonzero((p > 0).any(0) | (q > 0).any(0))
    return p[:, used], q[:, used]


def rules_table(target, draft, temperature: float, top_k: int, n: int) -> dict:
    """Every rule under every law."""
    p, q = distributions(target, draft, temperature, top_k)
    measured, best = compare_laws(p, q, n, min(top_k, p.shape[1]), list(LAWS))
    return {"top_k": top_k, "n": n, "laws": measured, "best_law_per_position": best}


def optima(target, draft, temperature: float, top_k: int, n: int) -> dict:
    """Optimum of every law, and of the best law at each position."""
    p, q = distributions(target, draft, temperature, top_k)
    by_law, best = mean_optima(p, q, n, list(LAWS))
    return {"temperature": temperature, "top_k": top_k, "n": n, **by_law, "best": best}


def markdown(rules: dict, over_n: list[dict], over_t: list[dict]) -> str:
    lines = [f"Acceptance at top-k {rules['top_k']}, n = {rules['n']}\n"]
    lines += ["| law | rule | acceptance | below the law's optimum (points) |"]
    lines += ["|---|---|---|---|"]
    for law, found in rules["laws"].items():
        optimum = found["optimum"]
        lines.append(f"| {TITLES[law]} | optimum | {optimum:.4f} | |")
        for name, rule in found["rules"].items():
            rate, error = rule["acceptance_rate"], rule.get("standard_error")
            spread = "" if error is None else f" ± {error:.4f}"
            below = 100 * (optimum - rate)
            lines.append(f"| | {name} | {rate:.4f}{spread} | {below:.2f} |")
        for name, reason in found["not_measured"].items():
            lines.append(f"| | {name} | - | {reason} |")
    lines.append(
        f"| best law at each position | | {rules['best_law_per_position']:.4f} | |"
    )
    for title, rows in (("Optimum by top-k and n", over_n), ("By temperature", over_t)):
        lines += [
            f"\n{title}\n",
            "| top-k | n | T | " + " | ".join(TITLES.values()) + " |",
        ]
        lines += ["|---" * (3 + len(TITLES)) + "|"]
        for row in rows:
            rates = " | ".join(f"{row[name]:.4f}" for name in TITLES)
            lines.append(
                f"| {row['top_k']} | {row['n']} | {row['temperature']} | {rates} |"
            )
    return "\n".join(lines)


def plot(over_n: list[dict], over_t: list[dict], folder: Path) -> None:
    """Optimum against top-k and n, and of the laws against temperature."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(13, 4), sharey=True, layout="constrained"
    )
    for axis, law in zip(axes, LAWS, strict=True):
        for shade, k in enumerate(TOP_K):
            rows = [row for row in over_n if row["top_k"] == k]
            axis.plot(
                [row["n"] for row in rows],
                [row[law] for row in rows],
                "o-",
                c=plt.cm.viridis(shade / len(TOP_K)),
                ms=4,
                label=f"top-k {k}",
            )
        axis.set_title(TITLES[law])
        axis.set_xlabel("number of drafts")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("optimal acceptance rate")
    axes[0].legend()
    figure.savefig(folder / "acceptance_top_k.png", dpi=120)

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, title), marker in zip(TITLES.items(), "os^D", strict=True):
        axis.plot(
            [row["temperature"] for row in over_t],
            [row[name] for row in over_t],
            f"{marker}-",
            ls="--" if name == "best" else "-",
            label=title,
        )
    axis.set_xlabel("temperature")
    axis.set_ylabel("optimal acceptance rate")
    row = over_t[0]
    axis.set_title(f"{row['n']} drafts, top-k {row['top_k']}")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(folder / "acceptance_temperature.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logits", type=Path, help=".npz; the embedded pair if absent")
    parser.add_argument("--rows", type=int, default=32, help="positions, at most")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="folder for acceptance*.{md,json,png}")
    args = parser.parse_args()

    target, draft = logits_pair(args.logits, args.rows)
    rules = rules_table(target, draft, args.temp, args.top_k, args.num_drafts)
    over_n = [
        optima(target, draft, args.temp, k, n)
        for k in TOP_K
        for n in NUM_DRAFTS
        if n <= k
    ]
    over_t = [
        optima(target, draft, t, args.top_k, args.num_drafts) for t in TEMPERATURES
    ]
    report = markdown(rules, over_n, over_t)
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "acceptance.md").write_text(report + "\n", "utf-8")
        found = {"rules": rules, "over_n": over_n, "over_temperature": over_t}
        text = json.dumps(found, indent=2) + "\n"
        (args.out / "acceptance.json").write_text(text, "utf-8")
        plot(over_n, over_t, args.out)


if __name__ == "__main__":
    main()
