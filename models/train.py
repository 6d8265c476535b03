"""Trains the embedded pair on any text file.

    python -m globalres_jax.models.train --text FILE --out FOLDER

A byte-level BPE tokenizer first, then the target by cross-entropy, then the draft by
distillation: it learns the target's whole next-token distribution, since what a draft
is paid for is its overlap with the target, not with the text. Both are Llamas, and the
folder holds what `load` reads: `target/`, `draft/`, and the `tokenizer.json` they
share.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from globalres_jax.base import Array, Params
from globalres_jax.commands.outcome import exit_status
from globalres_jax.models.decoder import DecoderFn
from globalres_jax.models.description import Description
from globalres_jax.models.fitting import (
    Objective,
    cross_entropy,
    divergence,
    fit,
    overlap,
    windows,
)
from globalres_jax.models.initialisation import initial_parameters
from globalres_jax.models.layers import dropout
from globalres_jax.models.llama import LLAMA
from globalres_jax.models.loading import END_OF_TEXT, load
from globalres_jax.models.saving import save
from globalres_jax.models.tokenizer import TOKENIZER

#: The pair's configurations, in the words of a `config.json`.
COMMON = dict(
    model_type="llama",
    dtype="bfloat16",
    max_position_embeddings=None,  # none is known
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    eos_token_id=0,
)
TARGET = dict(
    num_hidden_layers=6,
    hidden_size=256,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    intermediate_size=800,
)
DRAFT = dict(
    num_hidden_layers=1,
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=384,
)
DROPOUT = 0.1  # of the target; the draft sees more than it can hold


class Corpus(NamedTuple):
    """A text in tokens.

    Attributes:
      vocab_size: number of tokens there are.
      batches: endless windows [B, L] of the first nine tenths.
      held: [N, L] windows of the rest.
    """

    vocab_size: int
    batches: Iterator[Array]
    held: Array


class Fixed(NamedTuple):
    """What the draft is fitted to.

    Attributes:
      teacher: parameters of the target.
      held: [N, L] held-out windows.
      held_logits: [N, L, V] what the target says to them.
    """

    teacher: Params
    held: Array
    held_logits: Array


class Student(NamedTuple):
    """A model to train: its configuration, its function, where it begins."""

    options: dict[str, Any]
    function: DecoderFn
    params: Params


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer; token 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="any text file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--draft-steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=129, help="tokens in a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep-target", action="store_true", help="train the draft only"
    )
    return parser.parse_args(argv)


def read_corpus(args: argparse.Namespace) -> Corpus:
    """The text in tokens of the tokenizer in `--out`, which is trained and written.

    With `--keep-target` it is there already.

    Raises:
      ValueError: the text is shorter than it takes for one window to be held out.
    """
    text = args.text.read_text("utf-8")
    cut = int(0.9 * len(text))
    if args.keep_target:
        tokenizer = Tokenizer.from_file(str(args.out / TOKENIZER))
    else:
        tokenizer = train_tokenizer(text[:cut], args.vocab_size)
        args.out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(args.out / TOKENIZER))
    trained, held = (
        np.asarray(tokenizer.encode(part).ids, np.int32)
        for part in (text[:cut], text[cut:])
    )
    rows = min(64, len(held) // args.length)
    if rows == 0:
        raise ValueError(
            f"--text: the last tenth of {args.text} has {len(held)} tokens, and a "
            f"window (--length) takes {args.length}"
        )
    held = held[: rows * args.length].reshape(rows, args.length)
    batches = windows(trained, args.batch, args.length, args.seed)
    return Corpus(tokenizer.get_vocab_size(), batches, jnp.asarray(held))


def new_student(shape: dict[str, int], vocab_size: int, seed: int) -> Student:
    """A model of this shape with random parameters."""
    options = {"vocab_size": vocab_size, **shape, **COMMON}
    function = DecoderFn(
        LLAMA.configure(Description(options, "train.py", LLAMA.defaults))
    )
    params = initial_parameters(jax.random.key(seed), function.config)
    return Student(options, function, params)


def train_target(corpus: Corpus, args: argparse.Namespace) -> None:
    """Fits the target to the text by cross-entropy, with dropout, and writes it."""
    options, function, params = new_student(TARGET, corpus.vocab_size, args.seed)

    def loss(params: Params, held: Array, batch: Array, key: Array) -> Array:
        logits = function.score(params, batch, dropout(DROPOUT, key))
        return cross_entropy(logits, batch)

    def validate(params: Params, held: Array) -> Array:
        return cross_entropy(function.score(params, held), held)

    objective = Objective(
        name="target",
        loss=loss,
        validate=validate,
        fixed=corpus.held,
        steps=args.steps,
        peak=2e-3,
        seed=args.seed,
    )
    params = fit(objective, params, corpus.batches)
    save(args.out / "target", LLAMA, options, params, jnp.bfloat16)


def train_draft(corpus: Corpus, args: argparse.Namespace) -> float:
    """Fits the draft to the target in `--out`, and writes it.

    Texts that the target itself wrote are not needed: it overlaps its training text.

    Returns:
      The acceptance rate of a single draft on held-out text.
    """
    teacher = load(args.out / "target", jnp.float32)
    options, student, params = new_student(DRAFT, corpus.vocab_size, args.seed + 1)
    held_logits = jax.jit(teacher.apply.score)(teacher.params, corpus.held)

    def loss(params: Params, fixed: Fixed, batch: Array, key: Array) -> Array:
        taught = teacher.apply.score(fixed.teacher, batch)
        return divergence(taught, student.score(params, batch))

    def validate(params: Params, fixed: Fixed) -> Array:
        return -overlap(fixed.held_logits, student.score(params, fixed.held))

    fixed = Fixed(teacher.params, corpus.held, held_logits)

    objective = Objective(
        name="draft",
        loss=loss,
        validate=validate,
        fixed=fixed,
        steps=args.draft_steps,
        peak=5e-3,
        seed=args.seed + 1,
    )
    params = fit(objective, params, corpus.batches)
    save(args.out / "draft", LLAMA, options, params, jnp.bfloat16)
    return -float(jax.jit(validate)(params, fixed))


def main(argv: list[str] | None = None) -> None:
    """Trains tokenizer, target and draft, and writes them under `--out`."""
    train(parse_arguments(argv))


def train(args: argparse.Namespace) -> None:
    """What `main` does, from its arguments."""
    corpus = read_corpus(args)
    if not args.keep_target:
        train_target(corpus, args)
    rate = train_draft(corpus, args)
    print(f"single-draft acceptance on held-out text: {rate:.3f}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
