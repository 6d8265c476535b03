"""Sampling options on the command line."""

from __future__ import annotations

import argparse

from globalres_jax.bregman import Bregman
from globalres_jax.decoding.stop_strings import stop_rows


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.add_argument("--temp", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument(
        "--bregman",
        type=float,
        metavar="ALPHA",
        help="make what --top-k keeps a distribution by a Bregman transform; 1 scales",
    )
    parser.add_argument(
        "--bregman-dual", action="store_true", help="by the dual one (ALPHA above 1)"
    )
    parser.add_argument(
        "--token-cost",
        type=float,
        metavar="LAMBDA",
        help="of --bregman: what each kept token costs, so that the number adapts",
    )
    _add_what_depends_on_the_text(parser)
    parser.add_argument(
        "--log-probabilities",
        action="store_true",
        help="of each token, in what --json says",
    )
    parser.add_argument(
        "--top-log-probabilities",
        type=int,
        default=0,
        metavar="N",
        help="and of the N likeliest tokens in its place",
    )


def _add_what_depends_on_the_text(parser: argparse.ArgumentParser) -> None:
    """Penalties, single tokens, and what ends a text."""
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="divide logits of tokens in prompt or text by it if they are positive,"
        " else multiply; 1 is none",
    )
    parser.add_argument(
        "--presence-penalty",
        type=float,
        metavar="C",
        help="take it off the logits of tokens in the text; 0 is none",
    )
    parser.add_argument(
        "--frequency-penalty",
        type=float,
        metavar="C",
        help="take it off once for each time that the text has the token; 0 is none",
    )
    parser.add_argument(
        "--logit-bias",
        action="append",
        metavar="ID=VALUE",
        help="add a number to a token's logit; -inf forbids it; may come several times",
    )
    parser.add_argument(
        "--min-tokens",
        type=int,
        metavar="N",
        help="the text does not end before it has so many tokens",
    )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the text before it says this; may come several times",
    )
    parser.add_argument(
        "--include-stop", action="store_true", help="end it behind that instead"
    )


def sampling_of(args: argparse.Namespace) -> dict:
    """What they mean to a `SpeculativeConfig`.

    Raises:
      ValueError: options that contradict each other, or that say nothing; the config
        looks at their numbers.
    """
    if args.stop is not None:
        stop_rows(args.stop, 1)
    elif args.include_stop:
        raise ValueError("--include-stop: needs --stop")
    wants_scores = args.log_probabilities or args.top_log_probabilities
    if wants_scores and not args.json:
        raise ValueError("--log-probabilities: are in what --json says; give both")
    return {
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "bregman": _bregman(args),
        "repetition_penalty": args.repetition_penalty,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "min_new_tokens": args.min_tokens,
        "logit_bias": dict(map(_bias, args.logit_bias or ())),
        "log_probabilities": args.log_probabilities,
        "top_log_probabilities": args.top_log_probabilities,
    }


def stops_of(args: argparse.Namespace) -> dict:
    """What they mean to `generate`, beside the config."""
    if args.stop is None:
        return {}
    return {"stop": args.stop, "include_stop": args.include_stop}


def _bregman(args: argparse.Namespace) -> Bregman | None:
    if args.bregman is not None:
        return Bregman(
            alpha=args.bregman, token_cost=args.token_cost, dual=args.bregman_dual
        )
    if args.bregman_dual or args.token_cost is not None:
        name = "--bregman-dual" if args.bregman_dual else "--token-cost"
        raise ValueError(f"{name}: says how --bregman ALPHA transforms; give that, too")
    return None


def _bias(text: str) -> tuple[int, float]:
    """A token and what is added to its logit, of "ID=VALUE"."""
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError as error:
        raise ValueError(
            f"--logit-bias: expected ID=VALUE, such as 42=-1.5, got {text!r:.60}"
        ) from error
