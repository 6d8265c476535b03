"""`tree="auto"` against a grid of shapes and plain decoding.

    python benchmarks/planning.py [--target T.gguf --draft layers:0-2] [--random-draft]

Each way is one compiled program for the same prompt, batch 1; compilation and
calibration are reported apart. The calls take turns, each with other keys, so that load
on the machine falls on all alike. Ends of text are ignored.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import globalres_jax as gr
from globalres_jax.commands.loading import load_measured
from globalres_jax.planning import parse_shape, tokens_per_second
from globalres_jax.planning.question import of_shape

PROMPT = "KING RICHARD III:\nNow is the winter"
GRID = "plain chain:1 chain:3 chain:5 chain:7 chain:11 chain:15 paths:2,3 paths:3,5"


def randomised(model: gr.Model, seed: int = 0) -> gr.Model:
    """The model with weights of the same spread that mean nothing."""
    leaves, structure = jax.tree.flatten(model.params)
    generator = np.random.default_rng(seed)

    def noise(x):
        host = np.asarray(x, np.float32)
        drawn = generator.standard_normal(host.shape, np.float32) * host.std()
        kept = host.ndim < 2  # scales stay, or nothing would come through
        return x if kept else jnp.asarray(drawn, x.dtype)

    params = jax.tree.unflatten(structure, list(map(noise, leaves)))
    return dataclasses.replace(model, params=params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded-draft")
    parser.add_argument("--random-draft", action="store_true")
    parser.add_argument("--grid", nargs="*", default=GRID.split())
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--warm-calls", type=int, default=3, help="requests that auto learns from"
    )
    args = parser.parse_args()
    target, draft, _ = load_measured(args.target, args.draft, jnp.dtype("float32"))
    if args.random_draft:
        draft = randomised(draft)
    tokens = jnp.asarray([target.tokenizer.encode(PROMPT)], jnp.int32)
    auto = gr.SpeculativeConfig(tree="auto", temperature=args.temp, top_p=args.top_p)

    def call(seed: int, config: gr.SpeculativeConfig) -> gr.Generation:
        key, lengths = jax.random.key(seed), jnp.asarray([tokens.shape[1]])
        return jax.block_until_ready(
            gr.generate(
                key, target, draft, tokens, lengths, config, args.max_tokens, ()
            )
        )

    lengths = jnp.asarray([tokens.shape[1]])
    arguments = target, draft, tokens, lengths, auto, args.max_tokens
    plan = gr.plan(*arguments)
    print(f"{jax.devices()[0].device_kind}; first plan: {plan}")
    for seed in range(args.warm_calls):
        call(1000 + seed, auto)
    plan = gr.plan(*arguments)
    print(f"after {args.warm_calls} requests: {plan}\n")
    # A shape that the grid has, too, is the same program: it is run once.
    shapes = {str(s): s for s in (*map(parse_shape, args.grid), plan.shape)}
    ways = {name: of_shape(auto, shape) for name, shape in shapes.items()}
    first, rates, steps = {}, {name: [] for name in ways}, {name: [] for name in ways}
    for name, config in ways.items():
        begun = time.perf_counter()
        call(0, config)
        first[name] = time.perf_counter() - begun
    accepted = {name: [] for name in ways}
    for seed in range(1, args.repeats + 1):
        for name, config in ways.items():
            begun = time.perf_counter()
            result = call(seed, config)
            seconds = time.perf_counter() - begun
            rates[name].append(args.max_tokens / seconds)
            taken = int(result.metrics.num_spec_steps[0])
            steps[name].append(1e3 * seconds / taken)
            accepted[name].append(float(result.metrics.mean_acceptance_length[0]))
    known = plan.estimates
    print(
        "| shape | tokens/s | most | x plain | step (ms) | least | expected"
        " | tokens per step | expected | expected tokens/s | first call (s) |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    plain = statistics.median(rates["plain"]) if "plain" in rates else float("nan")
    for name, shape in shapes.items():
        median = statistics.median(rates[name])
        mark = "*" if shape == plan.shape else ""
        print(
            f"| {name}{mark} | {median:.0f} | {max(rates[name]):.0f} "
            f"| {median / plain:.2f} "
            f"| {statistics.median(steps[name]):.2f} | {min(steps[name]):.2f} "
            f"| {1e3 * known.costs.step_seconds(shape):.2f} "
            f"| {np.mean(accepted[name]):.2f} "
            f"| {1 + known.acceptance.accepted(shape):.2f} "
            f"| {tokens_per_second(shape, known.acceptance, known.costs):.0f} "
            f"| {first[name]:.1f} |"
        )


if __name__ == "__main__":
    main()
