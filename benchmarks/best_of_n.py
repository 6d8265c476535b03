"""Speculative rejection against full best-of-N at equal token-forwards.

    python benchmarks/best_of_n.py [--samples 16] [--kept 0.5] [--out FOLDER]

The embedded target continues lines of verse, without drafts, so that a token costs one
forward. Both ways write the same texts, by the same keys: best-of-N all of them to the
end, rejection the better ones. Shown for each reward: the best reward of rejection, of
all N texts, and of as many whole texts as rejection's forwards would pay for (the mean
over all choices of them); how often the best of all N survives; and the rank
correlation of rewards at each look with the final ones. Rewards are the mean
log-probability under the target, the share of different tokens, and a number drawn
from the last token, of which nothing can be known beforehand.

    python benchmarks/best_of_n.py --speed

Tokens a second with and without drafts, by batch size: where do drafts pay?
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.special import comb
from scipy.stats import spearmanr

import globalres_jax as gr
from globalres_jax import models
from globalres_jax.base import Array, Model
from globalres_jax.decoding.log_probabilities import log_softmax

LINES = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak",
    "ROMEO:\nIs the day so young?\n\nBENVOLIO:\nBut new struck nine.\n\nROMEO:\nAy me",
    "KING RICHARD III:\nNow is the winter of our discontent made glorious summer by",
    "JULIET:\nO, swear not by the moon, the inconstant moon, that monthly changes in",
    "MENENIUS:\nWhat work's, my countrymen, in hand? where go you with bats and clubs",
    "DUKE VINCENTIO:\nOf government the properties to unfold, would seem in me to",
)
REWARDS = ("log-probability", "variety", "last token")


def rewards(
    target: Model, prompt: Array, weights: Array, tokens: Array, lengths: Array
) -> Array:
    """The rewards of texts, weighed: one program serves each of `REWARDS`."""
    batch, size = tokens.shape
    inside = jnp.arange(size)[None, :] < lengths[:, None]
    tokens = jnp.where(inside, tokens, 0)
    before = jnp.broadcast_to(prompt[None], (batch, len(prompt)))
    texts = jnp.concatenate([before, tokens], axis=1)
    width = texts.shape[1]
    causal = jnp.tril(jnp.ones((width, width), bool))
    logits, _ = target.apply(
        target.params,
        texts,
        jnp.broadcast_to(jnp.arange(width)[None], texts.shape),
        target.init_cache(batch, width),
        jnp.broadcast_to(causal[None], (batch, width, width)),
    )
    own = log_softmax(logits[:, len(prompt) - 1 : -1])
    own = jnp.take_along_axis(own, tokens[..., None], axis=-1)[..., 0]
    likely = jnp.sum(jnp.where(inside, own, 0), axis=1) / lengths
    earlier = jnp.tril(jnp.ones((size, size), bool), -1)[None]
    seen = jnp.any((tokens[:, :, None] == tokens[:, None, :]) & earlier, axis=2)
    variety = jnp.sum(inside & ~seen, axis=1) / lengths
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    chance = (last * 7919 % 1009) / 1009
    return jnp.stack([likely, variety, chance], axis=1) @ weights


def mean_best(values: np.ndarray, count: float) -> float:
    """Mean of the largest of `count` of `values`, over all choices, interpolated."""
    values, total = np.sort(values), len(values)

    def of(size: int) -> float:
        ways = comb(np.arange(total), size - 1)
        return float(values @ (ways / ways.sum()))

    low = int(np.clip(np.floor(count), 1, total))
    high = min(low + 1, total)
    return of(low) + (count - low) * (of(high) - of(low))


def match(args, target: Model, prompt: Array, key: Array, weights: Array) -> dict:
    """Both ways for one prompt and one reward."""
    reward = jax.tree_util.Partial(rewards, target, prompt, weights)
    run = functools.partial(
        gr.best_of_n,
        key,
        target,
        None,
        prompt,
        reward,
        args.samples,
        max_new_tokens=args.max_tokens,
    )
    found, whole = run(kept=args.kept), run(kept=1.0)
    final, lengths = np.asarray(whole.rewards[:, -1]), np.asarray(whole.lengths)
    forwards, every = int(np.sum(found.lengths)), int(lengths.sum())
    survived = int(found.rounds[whole.best]) == found.rewards.shape[1]
    looks = [np.asarray(whole.rewards[:, i]) for i in range(whole.rewards.shape[1] - 1)]
    return {
        "rejection": float(found.rewards[found.best, -1]),
        "all": float(final.max()),
        "equal": mean_best(final, args.samples * forwards / every),
        "spread": float(final.std()),
        "forwards": forwards / every,
        "survived": survived or int(found.best) == int(whole.best),
        "correlation": [float(spearmanr(look, final).statistic) for look in looks],
    }


def compare(args) -> dict:
    """Means over prompts and seeds, for each reward."""
    target, results = models.load("embedded"), {}
    lines = [target.tokenizer.encode(line) for line in LINES]
    width = min(map(len, lines))
    work = [(line[-width:], seed) for line in lines for seed in range(args.seeds)]
    console = Console(stderr=True)
    for index, name in enumerate(REWARDS):
        weights = jnp.eye(len(REWARDS))[index]
        cells = [
            match(args, target, jnp.asarray(line), jax.random.key(seed), weights)
            for line, seed in track(work, name, console=console, transient=True)
        ]
        mean = {
            part: np.nanmean([cell[part] for cell in cells], axis=0).tolist()
            for part in cells[0]
        }
        gain = np.array([cell["rejection"] - cell["equal"] for cell in cells])
        mean["gain"] = float(gain.mean())
        mean["gain_error"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        results[name] = mean
    return results


def markdown(results: dict) -> str:
    lines = [
        "| reward | rejection | as many forwards, whole texts | all N | gain (error) | "
        "spread of texts | forwards | winner survives | rank correlation, by look |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        looks = ", ".join(f"{value:.2f}" for value in r["correlation"])
        lines.append(
            f"| {name} | {r['rejection']:.3f} | {r['equal']:.3f} | {r['all']:.3f} | "
            f"{r['gain']:.3f} ({r['gain_error']:.3f}) | {r['spread']:.3f} | "
            f"{r['forwards']:.2f} | {r['survived']:.2f} | {looks} |"
        )
    return "\n".join(lines)


def speed(args) -> str:
    """Tokens a second of plain and drafted decoding, timed in turns."""
    target, draft = models.load_pair("embedded", "embedded-draft")
    tokens = np.asarray(target.tokenizer.encode(LINES[2]), np.int32)
    lines = [
        "| texts | plain, tokens/s | drafts, tokens/s | ratio |",
        "|---|---|---|---|",
    ]
    for batch in args.batches:
        rows = (
            np.broadcast_to(tokens, (batch, len(tokens))),
            np.full(batch, len(tokens)),
        )
        calls = [
            gr.compile_generate(
                jax.random.key(0), target, of, *rows, None, args.max_tokens, ()
            )
            for of in (None, draft)
        ]
        seconds = []
        for _ in range(args.repeats):
            seconds.append([])
            for call in calls:
                start = time.perf_counter()
                jax.block_until_ready(call())
                seconds[-1].append(time.perf_counter() - start)
        plain, drafted = batch * args.max_tokens / np.min(seconds[1:], axis=0)
        lines.append(
            f"| {batch} | {plain:.0f} | {drafted:.0f} | {drafted / plain:.2f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4, help="of each prompt")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=6, help="of --speed")
    parser.add_argument("--out", type=Path, help="folder for best_of_n.{md,json}")
    args = parser.parse_args()

    results = None if args.speed else compare(args)
    report = speed(args) if results is None else markdown(results)
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "best_of_n.md").write_text(report + "\n", "utf-8")
        if results is not None:
            text = json.dumps(results, indent=2) + "\n"
            (args.out / "best_of_n.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
