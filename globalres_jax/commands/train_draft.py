"""Train a draft that fits a target, on texts that the target writes itself."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

SUMMARY = "Train a draft that fits a target, on texts that the target writes itself."

KINDS = ("feature", "embedding", "layers")
LOSSES = (
    *("kl", "reverse-kl", "jensen-shannon", "total-variation"),
    *("lk", "lk-mixture", "optimum-2", "optimum-4"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--target",
        required=True,
        help="embedded, a model folder, a .gguf file, or a hub id",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write; give it to generate as --draft",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, given the same options",
    )
    _add_texts(parser)
    _add_draft(parser)
    _add_steps(parser)
    parser.add_argument("--json", action="store_true", help="the card as JSON only")


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", help="a file to learn from, alone unless --texts")
    parser.add_argument(
        "--texts", type=int, help="texts that the target writes (512; 0 with --text)"
    )
    parser.add_argument(
        "--prompts",
        help="a file as generate takes it: the texts answer these, at random, in place "
        "of questions that a model for chats asks itself",
    )
    parser.add_argument("--length", type=int, default=256, help="tokens of a text")
    parser.add_argument(
        "--question",
        type=int,
        default=48,
        help="most tokens of the question that a model for chats asks itself",
    )
    parser.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="T",
        help="of the texts, in turn",
    )
    parser.add_argument(
        "--past-ends",
        action="store_true",
        help="texts go on behind an end token, so that every row is full",
    )
    parser.add_argument(
        "--rows", type=int, default=32, help="texts that are written at once"
    )
    parser.add_argument(
        "--on-the-fly",
        action="store_true",
        help="compute what the target says in every step, and keep none of it",
    )


def _add_draft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=KINDS, default="feature")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--hidden-size", type=int, help="as the target's by default")
    parser.add_argument("--num-heads", type=int)
    parser.add_argument("--num-kv-heads", type=int)
    parser.add_argument("--mlp-width", type=int)
    parser.add_argument(
        "--num-tokens",
        type=int,
        help="it drafts the so many most frequent tokens (8192, or all there are)",
    )
    parser.add_argument(
        "--from", dest="begin", metavar="DRAFT", help="train this draft further"
    )


def _add_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8, help="texts in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--loss", choices=LOSSES, default="kl")
    parser.add_argument(
        "--rollout",
        type=int,
        default=3,
        help="steps that a draft of kind feature learns to go on from itself",
    )
    parser.add_argument(
        "--feature-weight",
        type=float,
        default=0.0,
        help="of the distance between its features and the target's",
    )
    parser.add_argument(
        "--look", type=int, default=100, help="steps between looks at held-out texts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the computation; by default float32 on a CPU, else bfloat16",
    )
    parser.add_argument(
        "--data", type=int, metavar="N", help="split batches over N parts of a mesh"
    )


def run(args: argparse.Namespace) -> None:
    """Loads the target, trains, prints."""
    # Flax and Optax are slow to import, and other commands need less.
    from globalres_jax import models
    from globalres_jax.models.draft_training.run import run_training
    from globalres_jax.models.placement import default_dtype
    from globalres_jax.sharding import make_mesh

    mesh = None if args.data is None else make_mesh(args.data)
    dtype = args.dtype or str(default_dtype(mesh))
    target = models.load(args.target, dtype, mesh)
    described, prompts = _run(args, target, dtype), _prompts(args, target)
    with _Bars(quiet=args.json) as bars:
        card = run_training(
            target, described, args.out, mesh, bars.add, args.resume, prompts
        )
    if args.json:
        print(json.dumps(card, allow_nan=False))
        return
    held = card["held_out"]
    rates = ", ".join(f"{held[f'acceptance_{n}']:.3f} (n = {n})" for n in (1, 2, 4))
    print(
        f"held-out acceptance {rates}; a chain of 4 has {held['accepted_length']:.2f} "
        f"accepted\nuse it: python -m globalres_jax generate --target {args.target} "
        f"--draft {args.out} --prompt ..."
    )


def _prompts(args: argparse.Namespace, target) -> list[list[int]]:
    """The tokens of each prompt of the file; none without one."""
    if args.prompts is None or target.tokenizer is None:
        return []
    from globalres_jax.commands.prompt_file import PromptFile
    from globalres_jax.decoding.options import SamplingOptions
    from globalres_jax.serving.records import Defaults, prompt_tokens

    defaults = Defaults(SamplingOptions())
    file = PromptFile(Path(args.prompts), defaults, keep_going=False)
    file.check()
    return [
        list(prompt_tokens(record, defaults, target.tokenizer))
        for _, record in file.records()
    ]


def _run(args: argparse.Namespace, target, dtype: str):
    """The `Run` that the arguments describe; ValueError names an option."""
    from globalres_jax.models.draft_training.objective import Objective
    from globalres_jax.models.draft_training.run import Run
    from globalres_jax.models.draft_training.texts import Sampling
    from globalres_jax.models.draft_training.trainer import Schedule

    for name in ("length", "question", "rows", "layers", "steps", "batch", "look"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: must be at least 1, got {getattr(args, name)}")
    if args.learning_rate <= 0:
        raise ValueError(f"--learning-rate: must be positive, got {args.learning_rate}")
    if min(args.temperatures) < 0:
        raise ValueError(
            f"--temperatures: must not be negative, got {min(args.temperatures)}"
        )
    texts = args.texts
    if texts is None:
        texts = 512 if args.text is None else 0
    names = ("hidden_size", "num_heads", "num_kv_heads", "mlp_width")
    sizes = {name: getattr(args, name) for name in names}
    if args.kind != "layers" and not any(sizes.values()):
        sizes = _sizes_of(target)
    num_tokens = args.num_tokens or min(8192, target.vocab_size)
    return Run(
        target=args.target,
        text=args.text,
        texts=texts,
        prompts=args.prompts,
        sampling=Sampling(
            rows=args.rows,
            length=args.length,
            question=args.question,
            temperatures=tuple(args.temperatures),
            past_ends=args.past_ends,
        ),
        kind=args.kind,
        num_tokens=num_tokens,
        sizes={
            "num_layers": args.layers,
            **{name: size for name, size in sizes.items() if size is not None},
        },
        begin=args.begin,
        objective=Objective(
            loss=args.loss, rollout=args.rollout, feature_weight=args.feature_weight
        ),
        schedule=Schedule(
            steps=args.steps,
            batch=args.batch,
            peak=args.learning_rate,
            look=args.look,
            seed=args.seed,
            dtype=dtype,
        ),
        keep_rows=not args.on_the_fly,
    )


def _sizes_of(target) -> dict[str, int]:
    """The sizes of a target's layers; none of a model of another kind."""
    from globalres_jax.models.drafts.config import target_function

    config = target_function(target).config
    shape = config.attention
    return {
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "mlp_width": config.mlp_width,
    }


class _Bars:
    """Progress bars, to stderr; none where only JSON is wanted."""

    def __init__(self, quiet: bool):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=sys.stderr),
            disable=quiet,
        )

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def add(self, what: str, total: int):
        """A bar; call what it returns with how much is done."""
        bar = self._progress.add_task(what, total=total, note="")

        def report(done: int, note: str = "") -> None:
            self._progress.update(bar, completed=min(done, total), note=note)

        return report
