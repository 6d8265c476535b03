"""Drafts for one target on given prompts: speed, in turns with plain decoding.

    python benchmarks/drafts.py --target T --drafts DIR prompt-lookup --prompts FILE

Every way writes the same number of tokens behind every prompt, one prompt after the
other; on each prompt all ways take their turn, so that load on the machine falls on all
alike. A way is a draft and its tree, `DIR:4` for one path of four tokens or `DIR:2-1-1`
as in `trees.py`; if none is said, a path of 2 for prompt lookup and of 4 for others.
Prompts come from a file with one a line, or MT-Bench's
JSONL; a model for chats gets them as a user's message.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from drawn_trees import read_prompts, tree_of

import globalres_jax as gr

PLAIN = "plain"


def encode(tokenizer, prompts: list[str], most: int) -> list[list[int]]:
    """Tokens of the prompts that have at most so many."""
    if tokenizer.chat_template is None:
        found = [tokenizer.encode(prompt) for prompt in prompts]
    else:
        chats = ([{"role": "user", "content": prompt}] for prompt in prompts)
        texts = map(tokenizer.apply_chat_template, chats)
        found = [tokenizer.encode(text, special_tokens=False) for text in texts]
    return [tokens for tokens in found if len(tokens) <= most]


def read_ways(target: str, names: list[str]) -> tuple[gr.Model, dict[str, tuple]]:
    """The target; and by name a draft and its tree."""
    model, ways = gr.models.load(target), {PLAIN: (None, gr.tree.chain(0))}
    for name in names:
        draft, _, shape = name.rpartition(":")
        if not draft or not shape[:1].isdigit() or draft == "layers":
            draft, shape = name, "2" if name == "prompt-lookup" else "4"
        drafter = gr.models.draft_for(model, draft)
        ways[name] = drafter, tree_of(shape)
    return model, ways


def measure(target: gr.Model, ways: dict, rows: list, temperature: float, args) -> list:
    """What each way took for all prompts, and what was accepted."""
    width = args.longest  # of all, so that all are one program
    totals = {name: np.zeros(5) for name in ways}

    def write(name: str, row: list[int], seed: int) -> tuple[gr.Generation, float]:
        drafter, tree = ways[name]
        config = gr.SpeculativeConfig(tree=tree, temperature=temperature)
        prompt = np.asarray([row + [0] * (width - len(row))], np.int32)
        begin = time.perf_counter()
        result = gr.generate(
            jax.random.key(seed),
            target,
            drafter,
            prompt,
            np.asarray([len(row)], np.int32),
            config,
            args.max_tokens,
            (),
        )
        jax.block_until_ready(result)
        return result, time.perf_counter() - begin

    for name in ways:
        write(name, rows[0], 0)  # compiles
    for seed, row in enumerate(rows):
        for name in ways:
            result, seconds = write(name, row, seed)
            found = result.metrics
            totals[name] += [
                args.max_tokens,
                seconds,
                float(found.num_spec_steps.sum()),
                float(found.num_accepted_draft_tokens.sum()),
                float(np.asarray(found.reached_per_position).sum()),
            ]
    return [
        {
            "way": name,
            "temperature": temperature,
            "tokens_per_second": tokens / seconds,
            "tokens_per_target_call": tokens / max(steps, 1),
            "acceptance_rate": accepted / max(reached, 1),
        }
        for name, (tokens, seconds, steps, accepted, reached) in totals.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafts", nargs="+", default=["embedded-draft"])
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--count", type=int, default=8, help="prompts, evenly chosen")
    parser.add_argument("--longest", type=int, default=120, help="tokens of a prompt")
    parser.add_argument("--temp", type=float, nargs="+", default=[1.0, 0.6, 0.0])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    target, ways = read_ways(args.target, args.drafts)
    rows = encode(target.tokenizer, read_prompts(args.prompts), args.longest)
    chosen = np.linspace(0, len(rows) - 1, min(args.count, len(rows))).astype(int)
    found = []
    print(
        "| draft | temperature | tokens/s | x plain | tokens a target call | accepted |"
    )
    print("|---" * 6 + "|", flush=True)
    for temperature in args.temp:
        here = measure(target, ways, [rows[i] for i in chosen], temperature, args)
        for row in here:
            speed = row["tokens_per_second"]
            print(
                f"| {row['way']} | {temperature} | {speed:.1f} "
                f"| {speed / here[0]['tokens_per_second']:.2f} "
                f"| {row['tokens_per_target_call']:.2f} "
                f"| {row['acceptance_rate']:.3f} |",
                flush=True,
            )
        found += here
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
