"""Every rule for trees on the same drawn trees: drafts accepted, and time to verify.

    python benchmarks/trees.py [--paths 4x4 2x4 4x8] [--temp 1.0] [--steps 25]

Each row of a batch writes text by the default rule; before each step every rule says
how many drafts of that step's tree it accepts on average (`expected_accepted`), so that
rules differ by what they do and not by what was drawn. With standard errors over trees.
(Texts are short: the embedded pair agrees less on texts longer than it was trained on.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decode import PROMPTS, encode_prompts
from measure import time_call

import globalres_jax as gr
from globalres_jax.commands.loading import load_measured
from globalres_jax.decoding import step
from globalres_jax.drafters import as_drafter
from globalres_jax.numerics.rows import map_rows, on_platform
from globalres_jax.tree_verifiers import (
    LayerResolution,
    TopDown,
    Traversal,
    expected_accepted,
)

RULES = {
    "one race per layer": LayerResolution(),
    "optimum per position": TopDown(gr.verifiers.GlobalResolution()),
    "traversal": Traversal(),
    "recursive rejection": TopDown(gr.verifiers.RecursiveRejection()),
    "k-SEQ": TopDown(gr.verifiers.KSeq()),
}


def start(args, pair, shape: str) -> tuple[step.StepState, step.Request]:
    """The state after the prompts, and the request for `shape` paths."""
    num_paths, length = map(int, shape.split("x"))
    target, draft = pair
    config = gr.SpeculativeConfig(
        num_drafts=num_paths,
        draft_length=length,
        draft_top_k=args.draft_top_k,
        temperature=args.temp,
    )
    prompts, lengths = encode_prompts(target.tokenizer)
    batch = len(PROMPTS)
    request = step.Request(
        target=target,
        drafter=as_drafter(draft),
        options=config.sampling.for_rows(batch),
        ends=jnp.full((batch, 1), -1),
        config=config.program(),
    )
    keys, budget = jax.random.split(jax.random.key(0), batch), jnp.full(batch, 10**6)
    capacity = config.capacity(prompts.shape[1], args.steps * (length + 1))
    state = step.first_state(request, keys, prompts, lengths, budget, capacity)
    return state, request


@jax.jit
def measured_step(state, request):
    """The state after one step, and by rule what it accepts of the step's trees [B]."""
    with on_platform(jax.default_backend()):
        tree = request.config.token_tree
        proposal, _ = step.propose(
            step.step_keys(state.keys, state.steps)[0], state.draft, request
        )
        logits, _ = step.score(state.cache, proposal.tokens, request)
        p = request.options.to_probabilities(logits)
        trees = proposal.tokens, p, proposal.laws
        accepted = {
            name: map_rows(
                lambda *row, rule=rule: expected_accepted(rule, tree, *row), *trees
            )
            for name, rule in RULES.items()
        }
        # The same keys draw the same tree.
        return step.decode_step(state, request)[0], accepted, trees


def time_to_verify(rule, tree, key, trees, repeats: int = 30) -> float:
    """Median milliseconds of a walk of the first tree."""

    @jax.jit
    def walk(key, tokens, p, laws):
        with on_platform(jax.default_backend()):
            return rule.walk(key, tree, tokens, p, laws)

    first = jax.tree.map(lambda x: x[0], trees)
    return 1e3 * time_call(walk, key, *first, repeats=repeats)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded-draft")
    parser.add_argument("--paths", nargs="*", default=["4x4"], help="paths x length")
    parser.add_argument("--draft-top-k", type=int, default=100)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=25, help="steps of each text")
    parser.add_argument("--seeds", type=int, default=5, help="texts of each prompt")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    *pair, _ = load_measured(args.target, args.draft, jnp.dtype("float32"))
    rows = []
    for shape in args.paths:
        state, request = start(args, pair, shape)
        seen = {name: [] for name in RULES}
        for seed in range(args.seeds):
            keys = jax.random.split(jax.random.key(seed), len(PROMPTS))
            at = state._replace(keys=keys)
            for _ in range(args.steps):
                at, accepted, trees = measured_step(at, request)
                for name, lengths in accepted.items():
                    seen[name].append(np.asarray(lengths))
        for name, rule in RULES.items():
            lengths = np.concatenate(seen[name])
            tree = request.config.token_tree
            rows.append(
                {
                    "paths": shape,
                    "rule": name,
                    "trees": len(lengths),
                    "accepted": float(lengths.mean()),
                    "standard_error": float(lengths.std() / np.sqrt(len(lengths))),
                    "verify_ms": time_to_verify(rule, tree, jax.random.key(0), trees),
                }
            )
    print("| paths | rule | drafts accepted a step | time to verify (ms) |")
    print("|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['paths']} | {row['rule']} | {row['accepted']:.3f} "
            f"+- {row['standard_error']:.3f} | {row['verify_ms']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
