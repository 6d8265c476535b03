"""Plain decoding against every implemented rule, on the embedded pair.

    python benchmarks/decode.py [--num-drafts 4 --draft-length 4] [--json FILE]

Each row is one compiled `generate` call on the same prompts. Compilation is reported
apart; the timed calls take turns, so that load on the machine falls on all rows alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import globalres_jax as gr
from globalres_jax import models
from globalres_jax.verifiers import (
    BY_NAME,
    GreedyDraft,
    SingleDraft,
    SpecHub,
    TruncatedGlobalResolution,
)

PROMPTS = (
    "ROMEO:\n",
    "KING RICHARD III:\nNow is the winter",
    "First Citizen:\nWe are accounted poor citizens",
    "JULIET:\nO, ",
)

#: These do not serve i.i.d. drafts, or take seconds a step (the published method).
LEFT_OUT = (GreedyDraft, SpecHub, TruncatedGlobalResolution)


def encode_prompts(tokenizer) -> tuple[jax.Array, jax.Array]:
    ids = [tokenizer.encode(text) for text in PROMPTS]
    width = max(map(len, ids))
    padded = [row + [0] * (width - len(row)) for row in ids]
    return jnp.array(padded), jnp.array([len(row) for row in ids])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()

    target, draft = models.load("embedded"), models.load("embedded-draft")
    prompts, lengths = encode_prompts(target.tokenizer)

    def config(verifier, num_drafts: int) -> gr.SpeculativeConfig:
        return gr.SpeculativeConfig(
            num_drafts=num_drafts,
            draft_length=args.draft_length,
            verifier=verifier,
            temperature=args.temp,
            top_k=args.top_k,
        )

    ways = {"plain": (None, config(gr.verifiers.SingleDraft(), 1))}
    for name, rule in BY_NAME.items():
        num_drafts = 1 if rule is SingleDraft else args.num_drafts
        if rule not in LEFT_OUT:
            ways[name] = (draft, config(rule(), num_drafts))

    def call(name: str, seed: int) -> tuple[gr.Generation, float]:
        model, options = ways[name]
        start = time.perf_counter()
        result = gr.generate(
            jax.random.key(seed),
            target,
            model,
            prompts,
            lengths,
            options,
            max_new_tokens=args.max_tokens,
            eos_id=(),
        )
        jax.block_until_ready(result)
        return result, time.perf_counter() - start

    first = {name: call(name, 0)[1] for name in ways}
    runs = {name: [] for name in ways}
    for seed in range(1, args.repeats + 1):
        for name in ways:
            runs[name].append(call(name, seed))

    rows = []
    for name, outcomes in runs.items():
        seconds = statistics.median(t for _, t in outcomes)
        tokens = len(PROMPTS) * args.max_tokens
        metrics = [result.metrics for result, _ in outcomes]

        def total(field: str, metrics=metrics) -> float:
            return float(sum(np.asarray(getattr(m, field)).sum() for m in metrics))

        reached = max(total("reached_per_position"), 1)
        accepted = total("num_accepted_draft_tokens")
        rows.append(
            {
                "rule": name,
                "tokens_per_second": tokens / seconds,
                "mean_acceptance_length": 1 + accepted / total("num_spec_steps"),
                "acceptance_rate": accepted / reached,
                "optimal_acceptance_rate": total("optimum_sum") / reached,
                "first_call_seconds": first[name],
            }
        )
    plain = rows[0]["tokens_per_second"]
    print(
        f"{len(PROMPTS)} prompts, {args.max_tokens} tokens each, "
        f"{args.num_drafts} paths of {args.draft_length}, temperature {args.temp}, "
        f"top-k {args.top_k}, {jax.devices()[0].device_kind}, "
        f"median of {args.repeats}\n"
    )
    print(
        "| rule | tokens/s | x plain | tokens per target call | accepted | optimum |"
        " first call (s) |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['rule']} | {row['tokens_per_second']:.0f} "
            f"| {row['tokens_per_second'] / plain:.2f} "
            f"| {row['mean_acceptance_length']:.2f} | {row['acceptance_rate']:.3f} "
            f"| {row['optimal_acceptance_rate']:.3f} "
            f"| {row['first_call_seconds']:.1f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
