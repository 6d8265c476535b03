"""Write text with a target and a draft model, and say how the drafts fared."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from globalres_jax.base import Drafter, Model
from globalres_jax.commands import many
from globalres_jax.commands.loading import load_measured
from globalres_jax.commands.plotting import plot_accepted
from globalres_jax.commands.printing import (
    TimedGeneration,
    Writer,
    as_json,
    metrics_table,
    show_results,
)
from globalres_jax.commands.sampling import add_sampling, sampling_of, stops_of
from globalres_jax.commands.seeds import key_of_seed
from globalres_jax.decoding.config import AUTO, SpeculativeConfig
from globalres_jax.decoding.loop import compile_generate
from globalres_jax.decoding.program import plan
from globalres_jax.decoding.request import check_least, check_room
from globalres_jax.decoding.stream import compile_stream
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.interruption import postponed
from globalres_jax.planning import kept_in, learn, observe, parse_shape
from globalres_jax.planning.store import VARIABLE
from globalres_jax.tree_verifiers import BY_NAME as TREE_RULES
from globalres_jax.tree_verifiers import Block, by_name
from globalres_jax.verifiers import BY_NAME, SingleDraft

SUMMARY = "Write text with a target and a draft model, and say how the drafts fared."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--prompt", help="text to continue")
    many.add_arguments(parser)
    parser.add_argument(
        "--target",
        default="embedded",
        help="embedded, a model folder, a .gguf file, or a hub id",
    )
    parser.add_argument(
        "--draft",
        help="likewise, or a draft made for the target (its folder, or a shipped one's"
        " name), layers:0-11 (some of the target's layers), or prompt-lookup; by"
        " default embedded-draft for embedded, else prompt-lookup",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of weights and cache; by default float32 on a CPU, else bfloat16",
    )
    parser.add_argument("--system", help="first message of the chat")
    parser.add_argument(
        "--no-chat-template",
        action="store_true",
        help="continue the prompt as it is; without this, a model with a chat template"
        " gets it as a user's message",
    )
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    _add_options(parser)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also decode without drafts; the texts are shown when both are there",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="load time, type of numbers, peak memory, cache folder, why a tree was"
        " chosen, and all metrics, to stderr",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw how many drafted tokens the steps accepted",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object only")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what makes the `SpeculativeConfig`."""
    parser.add_argument(
        "--verifier",
        default="layer-resolution",
        choices=sorted([*BY_NAME, *TREE_RULES]),
        help="which rule accepts drafts; every one keeps the target's distribution",
    )
    parser.add_argument(
        "--tree",
        metavar="SHAPE",
        help="auto (what pays on this machine, measured before the first text),"
        " chain:7, paths:3,5 or plain; in place of --num-drafts and --draft-length",
    )
    parser.add_argument(
        "--plans",
        metavar="FOLDER",
        help="keep there what --tree auto measured, and do not measure it again;"
        f" {VARIABLE}=FOLDER does so, too",
    )
    parser.add_argument(
        "--law",
        choices=sorted(LAWS),
        help="how the children of a node of the draft tree are drawn (iid)",
    )
    parser.add_argument(
        "--num-drafts",
        type=int,
        help="drafted paths (1 on a CPU, for single drafts and prompt-lookup; else 3)",
    )
    parser.add_argument(
        "--draft-length",
        type=int,
        help="tokens a path (5; 2 for prompt-lookup, which seldom finds more)",
    )
    add_sampling(parser)
    parser.add_argument(
        "--draft-top-k",
        type=int,
        metavar="K",
        help="draw drafts from the draft's K likeliest tokens (256); exact for any K",
    )
    parser.add_argument(
        "--draft-temp",
        type=float,
        metavar="T",
        help="the draft's temperature is --temp times this (1); exact for any T",
    )
    parser.add_argument(
        "--measure-optimum",
        action="store_true",
        help="compute what the optimal rule would accept, whatever the rule",
    )


def run(args: argparse.Namespace) -> None:
    """Loads the pair, generates, prints."""
    many.check(args)
    if args.prompt == "":
        raise ValueError("--prompt: empty; give at least one character")
    draft_name = args.draft
    if draft_name is None:
        embedded = args.target == "embedded"
        draft_name = "embedded-draft" if embedded else "prompt-lookup"
    config = _config(args, draft_name)
    key_of_seed(args.seed)
    check_least(config.min_new_tokens, check_room(args.max_tokens, 1)[0])
    if args.prompts is not None:
        many.run(args, config, draft_name)
        return
    target, draft, loading = load_measured(args.target, draft_name, args.dtype)
    if args.verbose:
        print(loading, file=sys.stderr)
    if target.tokenizer is None:
        raise ValueError(f"--target: {args.target} has no tokenizer")
    prompt = _prompt_tokens(args, target)
    if not prompt:
        raise ValueError("--prompt: comes to no token of the target's")
    with kept_in(args.plans):
        results = {"speculative": _planned(args, target, draft, config, prompt)}
    if args.compare:
        results["plain"] = _timed(args, target, None, config, prompt)
    if args.json:
        described = as_json(target.tokenizer, args.prompt, results, prompt)
        print(json.dumps(described, allow_nan=False))
    else:
        before = _before(args, target)
        if args.compare:
            writer = Writer(target.tokenizer, before, prompt)
            spoken = results["speculative"]
            pieces = spoken.pieces(target.tokenizer, prompt)
            writer.write(spoken.tokens, spoken.from_draft, pieces)
            writer.end(interrupted=False)
        show_results(target.tokenizer, before, results, prompt)
    if args.verbose:
        table = metrics_table(results["speculative"].metrics)
        Console(stderr=True, highlight=False).print(table)
    if args.plot is not None:
        plot_accepted(args.plot, results["speculative"].counts)
    for name, result in results.items():
        if result.failed:
            print(
                f"{name}: after {len(result.tokens)} tokens the target's logits were "
                "no numbers, or nothing but -inf; the text ends there",
                file=sys.stderr,
            )


def _config(args: argparse.Namespace, draft_name: str) -> SpeculativeConfig:
    tree = args.tree
    if tree not in (None, AUTO):
        tree = parse_shape(tree).tree
    verifier = by_name(args.verifier)
    num_drafts, length = args.num_drafts, args.draft_length
    looked_up = draft_name == "prompt-lookup"
    if num_drafts is None:
        single = looked_up or isinstance(verifier, SingleDraft | Block)
        num_drafts = 1 if single else None
    if length is None:
        length = 2 if looked_up else 5
    return SpeculativeConfig(
        num_drafts=num_drafts,
        draft_length=length,
        tree=tree,
        law=None if args.law is None else LAWS[args.law],
        verifier=verifier,
        **sampling_of(args),
        draft_top_k=args.draft_top_k,
        draft_temperature=args.draft_temp,
        measure_optimum=args.measure_optimum,
    )


def _is_chat(args: argparse.Namespace, target: Model) -> bool:
    return target.tokenizer.chat_template is not None and not args.no_chat_template


def _prompt_tokens(args: argparse.Namespace, target: Model) -> list[int]:
    """The prompt as a user's message where the model is one for chats."""
    tokenizer = target.tokenizer
    if not _is_chat(args, target):
        if args.system is not None:
            raise ValueError("--system: needs a model with a chat template")
        return tokenizer.encode(args.prompt)
    messages = [{"role": "user", "content": args.prompt}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    text = tokenizer.apply_chat_template(messages)
    return tokenizer.encode(text, special_tokens=False)


def _planned(
    args: argparse.Namespace,
    target: Model,
    draft: Model | Drafter | None,
    config: SpeculativeConfig,
    tokens: list[int],
) -> TimedGeneration:
    """Decodes by the tree that pays, if it is to be chosen.

    Written at once, but for JSON, and where speeds are compared: both ways are then
    timed alike, without writing.
    """
    decode = _timed if args.json or args.compare else _streamed
    if config.tree != AUTO:
        return decode(args, target, draft, config, tokens)
    rows = np.asarray([tokens], np.int32), np.asarray([len(tokens)])
    chosen = plan(target, draft, *rows, config, args.max_tokens)
    if args.verbose:
        print(chosen, file=sys.stderr)
    result = decode(args, target, draft, chosen.config, tokens)
    observe(chosen, result.counts)
    learn(wait=True)
    return result


def _timed(
    args: argparse.Namespace,
    target: Model,
    draft: Model | Drafter | None,
    config: SpeculativeConfig,
    tokens: list[int],
) -> TimedGeneration:
    start = time.perf_counter()
    request = _request(args, target, draft, config, tokens)
    decode = compile_generate(*request, **stops_of(args))
    compiled = time.perf_counter()
    result = jax.block_until_ready(decode())
    return TimedGeneration(
        result, compiled - start, running=time.perf_counter() - compiled
    )


def _streamed(
    args: argparse.Namespace,
    target: Model,
    draft: Model | Drafter | None,
    config: SpeculativeConfig,
    tokens: list[int],
) -> TimedGeneration:
    """`_timed`, written while it is decoded; Ctrl-C ends it after the step at hand."""
    start = time.perf_counter()
    request = _request(args, target, draft, config, tokens)
    begin = compile_stream(*request, steps_per_chunk=1, **stops_of(args))
    compiled = time.perf_counter()
    writer = Writer(target.tokenizer, _before(args, target), tokens)
    with postponed() as interrupted:
        for chunk in begin():
            pieces = None if chunk.pieces is None else chunk.pieces[0]
            writer.write(chunk.tokens[0], chunk.from_draft[0], pieces)
            if interrupted():
                break
        running = time.perf_counter() - compiled
        ended = not chunk.running[0]
        writer.end(interrupted=not ended)
        result = TimedGeneration(
            chunk.result, compiled - start, running, interrupted=not ended
        )
        if interrupted():
            show_results(target.tokenizer, "", {"speculative": result}, tokens)
            raise KeyboardInterrupt
    return result


def _request(
    args: argparse.Namespace,
    target: Model,
    draft: Model | Drafter | None,
    config: SpeculativeConfig,
    tokens: list[int],
) -> tuple:
    """The arguments of `generate`."""
    prompt, lengths = np.asarray([tokens], np.int32), np.asarray([len(tokens)])
    key = key_of_seed(args.seed)
    return key, target, draft, prompt, lengths, config, args.max_tokens


def _before(args: argparse.Namespace, target: Model) -> str:
    """What is shown before the text: the prompt, apart from the answer in a chat."""
    return args.prompt + ("\n\n" if _is_chat(args, target) else "")
