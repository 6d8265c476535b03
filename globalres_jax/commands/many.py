"""`generate --prompts FILE --out FILE`: a file of prompts, answered line by line."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from globalres_jax.base import Drafter, Model
from globalres_jax.commands.answer_file import AnswerFile, fingerprint
from globalres_jax.commands.loading import load_measured
from globalres_jax.commands.plotting import check_plot, plot_accepted
from globalres_jax.commands.prompt_file import PromptFile
from globalres_jax.commands.sampling import stops_of
from globalres_jax.commands.summary import Summary, as_answer, progress
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.interruption import postponed
from globalres_jax.planning import kept_in
from globalres_jax.serving import GenerationRequest, generate_many
from globalres_jax.serving.admission import settle
from globalres_jax.serving.records import (
    Defaults,
    Record,
    as_request,
    length_cap,
    prompt_tokens,
)
from globalres_jax.tree import MOST_NODES
from globalres_jax.validation import LARGEST, as_integer

#: Arguments that a text depends on, beside its own line.
_DECISIVE = (
    "target",
    "draft",
    "dtype",
    "system",
    "no_chat_template",
    "max_tokens",
    "seed",
    "verifier",
    "tree",
    "law",
    "num_drafts",
    "draft_length",
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "stop",
    "include_stop",
    "draft_top_k",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that many prompts have."""
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help="in place of --prompt: an object a line, with `prompt` (or `messages`, or"
        " MT-Bench's `turns`, of which the first counts), and perhaps `id`,"
        " max_tokens, seed, temperature, top_k, top_p, min_p, penalties by their names",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.jsonl",
        help="where the answers go, an object a line; what it holds is not done again",
    )
    parser.add_argument("--samples", type=int, help="texts for each prompt (1)")
    parser.add_argument("--batch", type=int, help="prompts at a time (8)")
    parser.add_argument(
        "--cache-length",
        type=int,
        metavar="TOKENS",
        help="room for a prompt, its text and a draft; by default what the longest"
        " prompt needs. A prompt that needs more is answered with an error",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="leave broken lines of --prompts out, and say which",
    )


def check(args: argparse.Namespace) -> None:
    """ValueError for options that do not go together, before anything is read."""
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError("--prompt, --prompts: give one of them")
    if args.plot is not None:
        check_plot(args.plot)
    if args.prompts is None:
        for name in ("out", "samples", "batch", "cache_length", "keep_going"):
            if getattr(args, name) not in (None, False):
                raise ValueError(f"--{name.replace('_', '-')}: needs --prompts")
        return
    if args.out is None:
        raise ValueError("--out: --prompts needs a file for the answers")
    if args.compare:
        raise ValueError("--compare: is for one --prompt")
    if args.out.exists() and args.prompts.exists() and args.out.samefile(args.prompts):
        raise ValueError("--out: is the file of the prompts")
    for name, most in (("batch", MOST_NODES), ("samples", LARGEST)):
        value = getattr(args, name)
        if value is not None:
            as_integer(f"--{name}", value, 1, most)
    if args.cache_length is not None:
        as_integer("--cache-length", args.cache_length, 1, LARGEST)


def run(args: argparse.Namespace, config: SpeculativeConfig, draft_name: str) -> None:
    """Answers what has not been answered, and says how the drafts fared."""
    defaults = Defaults(
        config.sampling,
        args.max_tokens,
        args.seed,
        args.system,
        not args.no_chat_template,
        **stops_of(args),
    )
    prompts = PromptFile(args.prompts, defaults, args.keep_going)
    _, broken = prompts.check()
    settings = {name: getattr(args, name) for name in _DECISIVE}
    asked = _Asked(prompts, args.samples or 1, settings | {"draft": draft_name})
    answers = AnswerFile(args.out)
    held = [answers.holds(*place) for place, _ in asked]
    answers.check_all_asked()
    summary = Summary(before=sum(held), broken=broken)
    with answers:
        if summary.before < len(held):
            missing = len(held) - summary.before
            _answer(args, config, asked, answers, summary, missing)
    summary.show(args.json, args.verbose)
    if args.plot is not None:
        plot_accepted(args.plot, summary.counts)


class _Asked(NamedTuple):
    """All that is asked: every sample of every line, with its fingerprint.

    Attributes:
      prompts: the lines.
      samples: texts for each.
      settings: all else that a text depends on, by name.
    """

    prompts: PromptFile
    samples: int
    settings: dict

    def __iter__(self) -> Iterator[tuple[tuple[int, int, str], Record]]:
        for number, record in self.prompts.records():
            for sample in range(self.samples):
                mark = fingerprint(
                    self.settings, record.content, record.options, sample
                )
                yield (number, sample, mark), record


def _answer(
    args: argparse.Namespace,
    config: SpeculativeConfig,
    asked: _Asked,
    answers: AnswerFile,
    summary: Summary,
    missing: int,
) -> None:
    """Loads the pair, and writes each answer as soon as it is there."""
    target, draft, loading = load_measured(
        args.target, asked.settings["draft"], args.dtype
    )
    if args.verbose:
        print(loading, file=sys.stderr)
    if target.tokenizer is None:
        raise ValueError(f"--target: {args.target} has no tokenizer")
    batch = args.batch or 8
    with kept_in(args.plans):
        config, unfit = _settled(args, target, draft, config, asked.prompts, batch)
    summary.broken += unfit
    requests = _requests(asked, answers, target, set(unfit))
    begun = time.perf_counter()
    missing -= asked.samples * len(unfit)
    with postponed() as interrupted, progress(missing) as show:
        found = generate_many(target, draft, requests, config=config, batch=batch)
        for completion in found:
            line, sample, name, mark = completion.request.name
            answer = {} if name is None else {"id": name}
            answers.add(line, sample, mark, answer | as_answer(completion))
            summary.add(completion, time.perf_counter() - begun)
            show(summary, completion if args.verbose else None)
            if interrupted():
                break
        ended = len(answers) >= missing
    if interrupted() and not ended:
        summary.show(args.json, args.verbose)
        raise KeyboardInterrupt


def _settled(
    args: argparse.Namespace,
    target: Model,
    draft: Model | Drafter,
    config: SpeculativeConfig,
    prompts: PromptFile,
    batch: int,
) -> tuple[SpeculativeConfig, list[int]]:
    """The config with tree and cache length; lines whose prompt this model cannot read.

    Raises:
      ValueError: such a line, if broken ones are not to be left out.
    """
    defaults, tokenizer = prompts.defaults, target.tokenizer
    config = dataclasses.replace(config, cache_length=args.cache_length)
    unfit: list[int] = []

    def sizes() -> Iterator[GenerationRequest]:
        for number, record in prompts.records():
            try:
                tokens = prompt_tokens(record, defaults, tokenizer)
            except ValueError as error:
                prompts.refuse(number, error)
                unfit.append(number)
                continue
            cap = length_cap(record, defaults)
            yield GenerationRequest(prompt=tokens, max_new_tokens=cap)

    if args.cache_length is not None:
        first = list(sizes())[:batch]
        return settle(target, draft, first, config, batch).config, unfit
    found = sizes()
    first = list(itertools.islice(found, batch))
    pair = settle(target, draft, first, config, batch)
    length = max([pair.config.cache_length, *map(pair.needed, found)])
    return dataclasses.replace(pair.config, cache_length=length), unfit


def _requests(
    asked: _Asked, answers: AnswerFile, target: Model, unfit: set[int]
) -> Iterator[GenerationRequest]:
    """What has not been answered, one by one."""
    for (number, sample, mark), record in asked:
        if number in unfit or answers.holds(number, sample, mark):
            continue
        yield as_request(
            record,
            asked.prompts.defaults,
            target.tokenizer,
            sample,
            name=(number, sample, record.name, mark),
        )
