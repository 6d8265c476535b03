"""Where a decoding step spends its time: model calls, and everything else.

    python benchmarks/step.py [--target T.gguf --draft layers:0-2] [--top-p 0.95]

Each piece runs in a compiled loop of its own over the same state, so that caches are
written in place as they are in `generate`; the loops take turns. `all model calls` are
those of a step, one after another, with nothing done between them but to draw tokens of
a fixed law; what the whole step takes beyond them is its own. (Loops of the target's or
the draft's calls alone find their weights in nearer caches than a step does.)
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import globalres_jax as gr
from globalres_jax.commands.loading import load_measured
from globalres_jax.decoding import scoring, step
from globalres_jax.decoding.emission import with_features
from globalres_jax.decoding.options import broken_rows
from globalres_jax.decoding.state import Request, StepState, first_state
from globalres_jax.drafters import as_drafter
from globalres_jax.numerics.rows import on_platform

PROMPT = "ROMEO:\nBut soft, what light through yonder window breaks? It is the east"


def start(args: argparse.Namespace) -> tuple[StepState, Request]:
    """The state after a prompt, and the request."""
    target, draft, _ = load_measured(args.target, args.draft, jnp.dtype(args.dtype))
    config = gr.SpeculativeConfig(
        num_drafts=args.num_drafts,
        draft_length=args.draft_length,
        draft_top_k=args.draft_top_k,
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        verifier=gr.tree_verifiers.by_name(args.verifier),
    )
    ids = jnp.asarray([target.tokenizer.encode(PROMPT)] * args.batch, jnp.int32)
    lengths = jnp.full(args.batch, ids.shape[1])
    request = Request(
        target=target,
        drafter=as_drafter(draft),
        options=config.sampling.for_rows(args.batch),
        ends=jnp.full((args.batch, 1), -1),
        config=config.program(),
    )
    keys = jax.random.split(jax.random.key(0), args.batch)
    budget = jnp.full(args.batch, 10**6)
    capacity = config.capacity(ids.shape[1], args.steps * (args.draft_length + 1))
    return first_state(request, keys, ids, lengths, budget, capacity), request


def pieces(request: Request) -> dict[str, Callable]:
    """Functions of a state and what a step before it made, each one piece of a step."""
    tree = request.config.token_tree

    def whole(state, made):
        return step.decode_step(state, request)[0], made

    def others(made):
        """Other tokens each time, or layers would be computed once for all steps."""
        proposal = made["proposal"]
        tokens = (proposal.tokens + 1) % request.target.vocab_size
        return made | {"proposal": proposal._replace(tokens=tokens)}

    def target_call(state, made):
        made = others(made)
        logits, cache = scoring.score(state.cache, made["proposal"].tokens, request)
        return state._replace(cache=cache), made | {"logits": barrier(logits)}

    def draft_calls(state, made):
        keys = step.step_keys(state.keys, state.steps)[0]
        policy = FixedPolicy(request.target.vocab_size)
        proposal, draft = request.drafter.propose(keys, state.draft, tree, policy)
        state = state._replace(draft=draft, steps=state.steps + 1)
        return state, made | {"kept": barrier(proposal.tokens)[:, 0]}

    def model_calls(state, made):
        keys = step.step_keys(state.keys, state.steps)[0]
        policy = FixedPolicy(request.target.vocab_size)
        proposal, draft = request.drafter.propose(keys, state.draft, tree, policy)
        logits, cache = scoring.score(state.cache, proposal.tokens, request)
        state = state._replace(cache=cache, draft=draft, steps=state.steps + 1)
        return state, made | {"kept": barrier(logits)[:, 0, 0].astype(int)}

    def propose(state, made):
        keys = step.step_keys(state.keys, state.steps)[0]
        proposal, draft = step.propose(keys, state.draft, request)
        state = state._replace(draft=draft, steps=state.steps + 1)
        return state, made | {"proposal": proposal}

    def verify(state, made):
        keys = step.step_keys(state.keys, state.steps)[1]
        walk, _ = step.verify(
            keys, made["proposal"], made["logits"], made["broken"], request
        )
        return state._replace(steps=state.steps + 1), made | {"walk": walk}

    def filters(state, made):
        kept = request.options.to_probabilities(barrier(made["logits"]))
        return state, made | {"kept": barrier(kept)[:, 0, 0].astype(int)}

    def commit(state, made):
        tokens = made["proposal"].tokens
        sound = jnp.zeros(tokens.shape, bool)
        ends = state.budget, request.ends, sound
        emitted, _ = step.emit(made["walk"], tokens, *ends)
        emitted = with_features(emitted, made["features"])
        cache, draft = step.commit(state.cache, state.draft, emitted, request)
        base = state.cache.length, state.draft.cache.length
        draft = draft._replace(cache=draft.cache.with_length(base[1]))
        return state._replace(cache=cache.with_length(base[0]), draft=draft), made

    return {
        "whole step": whole,
        "all model calls": model_calls,
        "target call": target_call,
        "draft calls": draft_calls,
        "draft calls and draws": propose,
        "filters, all rows": filters,
        "walk": verify,
        "commit": commit,
    }


@dataclasses.dataclass(frozen=True)
class FixedPolicy:
    """A `DraftPolicy` that computes logits and draws from tokens that ignore them."""

    vocab_size: int
    reads_paths: bool = False

    def maker(self, level: int) -> int:
        """All levels are alike."""
        return 0

    def law(self, logits, level: int, num_drafts: int, tokens=None, paths=None):
        """Uniform on 64 tokens."""
        lead = barrier(logits)[..., :1]
        q = jnp.where(lead > jnp.inf, 0, jnp.ones((*lead.shape[:-1], 64)) / 64)
        tokens = jnp.arange(64)
        make = jax.vmap(lambda q: gr.IID(q, num_drafts).renamed(tokens, 64))
        return jax.vmap(make)(q)


def barrier(x):
    """`x`, which nothing before may be simplified by what is read of it."""
    return jax.lax.optimization_barrier(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded-draft")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--draft-top-k", type=int, default=256)
    parser.add_argument("--temp", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--verifier", default="global-resolution")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="steps of a loop")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    state, request = start(args)
    platform = jax.devices()[0].platform

    @jax.jit
    def first(state, request):
        with on_platform(platform):
            keys = step.step_keys(state.keys, state.steps)
            proposal, _ = step.propose(keys[0], state.draft, request)
            scored = scoring.score_as_read(state.cache, proposal.tokens, request)
            logits, features, _ = scored
            broken = broken_rows(logits)
            walk, _ = step.verify(keys[1], proposal, logits, broken, request)
        made = {"proposal": proposal, "logits": logits, "broken": broken}
        kept = proposal.tokens[:, 0]
        return made | {"walk": walk, "features": features, "kept": kept}

    made = first(state, request)
    loops, compiling = {}, {}
    for name in pieces(request):

        def loop(state, made, request, name=name):
            piece = pieces(request)[name]
            with on_platform(platform):
                return jax.lax.fori_loop(
                    0, args.steps, lambda _, carry: piece(*carry), (state, made)
                )

        begun = time.perf_counter()
        loops[name] = jax.jit(loop).lower(state, made, request).compile()
        compiling[name] = time.perf_counter() - begun

    times = {name: [] for name in loops}
    for _ in range(args.repeats):
        for name, loop in loops.items():
            begun = time.perf_counter()
            jax.block_until_ready(loop(state, made, request))
            times[name].append((time.perf_counter() - begun) / args.steps * 1e3)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    whole = median["whole step"]
    both = zip(times["whole step"], times["all model calls"], strict=True)
    rest = statistics.median(a - b for a, b in both)
    print(
        f"{jax.devices()[0].device_kind}, {request.config.token_tree.num_nodes} nodes"
    )
    print("\n| piece | ms | share of the step | compiled in (s) |\n|---|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {value:.2f} | {value / whole:.0%} | {compiling[name]:.1f} |")
    print(f"| whole step less model calls | {rest:.2f} | {rest / whole:.0%} | |")


if __name__ == "__main__":
    main()
