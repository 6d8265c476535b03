"""A run and its folder: texts, the target's rows, the steps, the finished draft.

The folder holds the draft itself, so that it can be given as a draft; and below
`training/` the texts, what the target says of them, checkpoints and the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from globalres_jax.base import Model
from globalres_jax.models.draft_training.checkpoints import import_orbax
from globalres_jax.models.draft_training.corpus import (
    collect_texts,
    count_tokens,
    sampled,
    split_file,
)
from globalres_jax.models.draft_training.initial import begin_draft
from globalres_jax.models.draft_training.objective import Objective
from globalres_jax.models.draft_training.teacher import (
    Lessons,
    frequent_tokens,
    keep_lessons,
)
from globalres_jax.models.draft_training.texts import (
    Sampling,
    Texts,
    fitting_prompts,
    join,
    text_frame,
)
from globalres_jax.models.draft_training.trainer import (
    Schedule,
    make_trainer,
    train,
)
from globalres_jax.models.drafts import DraftConfig, read_draft, save_draft

OPTIONS, TRAINING = "run.json", "training"

#: `progress(what, total) -> report(done, note="")`.
Progress = Callable[[str, int], Callable[..., None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is to do. As JSON it is what its folder says of it.

    Attributes:
      target: its name, as `models.load` takes it.
      text: a file to learn from, too; or alone, if `texts` is 0.
      texts: number that the target is to write.
      prompts: a file of what they answer; None where it asks itself.
      sampling: how it writes them.
      kind: of the draft, see `DraftConfig`.
      num_tokens: that it may draft.
      sizes: other options of `DraftConfig`.
      begin: folder of a draft to begin with, None for a new one.
      objective: what is made small.
      schedule: how long, and how fast.
      keep_rows: whether what the target says is computed once and kept.
    """

    target: str
    text: str | None = None
    texts: int = 512
    prompts: str | None = None
    sampling: Sampling = Sampling()
    kind: str = "feature"
    num_tokens: int = 8192
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    begin: str | None = None
    objective: Objective = Objective()
    schedule: Schedule = Schedule()
    keep_rows: bool = True

    def as_json(self) -> dict[str, Any]:
        """Plain values, as a file gives them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def open_folder(folder: Path, run: Run, resume: bool) -> Path:
    """The room of a run below its folder, which is made or found to be its own.

    Raises:
      ValueError: the folder holds something else, or another run.
    """
    path = folder / TRAINING / OPTIONS
    if folder.is_file():
        raise ValueError(f"--out: {folder} is a file; give a folder")
    if not resume:
        if path.is_file():
            raise ValueError(
                f"--out: {folder} holds another run; give --resume to go on with it, "
                "or another folder"
            )
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"--out: {folder} is not empty; give another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run.as_json(), indent=2) + "\n", "utf-8")
        return path.parent
    if not path.is_file():
        raise ValueError(f"--resume: {folder} holds no run ({path} is not there)")
    kept = json.loads(path.read_text("utf-8"))
    other = _differences(kept, run.as_json())
    if other:
        raise ValueError(
            f"--resume: the run in {folder} has other options: {', '.join(other)}; "
            "give the same, or another --out"
        )
    return path.parent


def _differences(kept: Any, given: Any, name: str = "") -> list[str]:
    """What differs, as `name: kept, not given`."""
    if isinstance(kept, dict) and isinstance(given, dict):
        names = dict.fromkeys([*kept, *given])
        parts = [_differences(kept.get(n), given.get(n), n) for n in names]
        return [difference for part in parts for difference in part]
    return [] if kept == given else [f"{name} {kept!r}, not {given!r}"]


def run_training(
    target: Model,
    run: Run,
    folder: Path,
    mesh: Mesh | None,
    progress: Progress,
    resume: bool = False,
    prompts: Sequence[list[int]] = (),
) -> dict[str, Any]:
    """Does all of it, and gives the card of the finished draft.

    Args:
      target: the model, loaded.
      run: what to do.
      folder: to write.
      mesh: devices to split batches over, or None.
      progress: shows how far it is.
      resume: whether the folder holds the beginning of this run.
      prompts: the tokens of those in the file, if there is one.

    Raises:
      ValueError: bad input; it is named.
      MemoryError: there is not enough; the option to lower is named.
    """
    import_orbax()
    pairs = _check(target, run, prompts)
    if prompts:
        prompts = fitting_prompts(prompts, run.sampling.length)
    begin = read_draft(run.begin, target) if run.begin else None
    room, start = open_folder(folder, run, resume), time.perf_counter()
    with memory_advice("--rows"):
        texts, held = _texts(target, run, room, pairs, progress, prompts)
    with memory_advice("--batch, --length or --num-tokens"):
        lessons = _lessons(target, run, room, texts, held, progress)
        if begin is None:
            config = DraftConfig(
                kind=run.kind,
                ids=frequent_tokens(target, texts, run.num_tokens),
                **run.sizes,
            )
            key = jax.random.key(run.schedule.seed)
            params = begin_draft(key, config, target, lessons[0])
        else:
            config, params, _ = begin
        trainer = make_trainer(target, config, run.objective, run.schedule, mesh)
        report = progress("steps", run.schedule.steps)
        params, measured = train(
            trainer,
            params,
            *lessons,
            run.schedule,
            room,
            lambda step, loss, seen: report(step, _note(loss, seen)),
        )
    counts = count_tokens(texts, target.vocab_size)
    card = {
        "run": run.as_json(),
        "texts": len(texts),
        "tokens": int(counts.sum()),
        "tokens_it_may_draft": float(counts[list(config.ids)].sum() / counts.sum()),
        "held_out": {"texts": len(held), **measured},
        "seconds": round(time.perf_counter() - start, 1),
    }
    save_draft(folder, config, params, card, target, jnp.bfloat16)
    return card


def _check(
    target: Model, run: Run, prompts: Sequence[list[int]]
) -> list[tuple[Texts, Texts]]:
    """The texts of a file, to learn from and to hold; before anything is written.

    Raises:
      ValueError: what cannot be done; an option is named.
    """
    batch, length = run.schedule.batch, run.sampling.length
    if target.tokenizer is None:
        raise ValueError(
            f"--target: {run.target} has no tokenizer, and its texts need one"
        )
    if run.num_tokens > target.vocab_size:
        raise ValueError(
            f"--num-tokens: {run.num_tokens} of a target that has {target.vocab_size}"
        )
    if run.texts and not prompts:
        text_frame(target, run.sampling)
    elif run.texts == 0 and prompts:
        raise ValueError("--prompts: no texts are to answer them (--texts 0)")
    elif run.texts == 0 and run.text is None:
        raise ValueError("--texts: 0, and no --text; a draft needs texts to learn from")
    if 0 < run.texts < batch:
        raise ValueError(
            f"--texts: {run.texts} texts are less than a batch (--batch {batch})"
        )
    if run.text is None:
        return []
    return [split_file(Path(run.text), target, length, batch)]


def _texts(
    target: Model,
    run: Run,
    room: Path,
    pairs: list[tuple[Texts, Texts]],
    progress: Progress,
    prompts: Sequence[list[int]],
) -> tuple[Texts, Texts]:
    """Texts to learn from, and to hold: those of a file, and those that are written."""
    if run.texts:
        written = collect_texts(
            room / "texts",
            target,
            run.sampling,
            run.texts,
            run.schedule.seed,
            progress("texts", run.texts),
            prompts,
        )
        pairs = [*pairs, written]
    learnt, held = zip(*pairs, strict=True)
    return join(learnt), join(held)


def _lessons(
    target: Model, run: Run, room: Path, texts: Texts, held: Texts, progress: Progress
) -> tuple[Lessons, Lessons]:
    """The same with what the target says, where that is kept."""
    if not run.keep_rows:
        return Lessons(texts, sampled(texts)), Lessons(held, sampled(held))
    folder, batch = room / "teacher", run.schedule.batch
    report = progress("target", len(texts))
    return (
        keep_lessons(folder, "learnt", target, texts, batch, report),
        keep_lessons(folder, "held", target, held, batch),
    )


def _note(loss: float, seen: dict) -> str:
    """What stands beside the progress bar."""
    note = f"loss {loss:.3f}"
    if seen:
        rates = "/".join(f"{seen[f'acceptance_{n}']:.3f}" for n in (1, 2, 4))
        note += f", accepted n=1/2/4 {rates}, chain {seen['accepted_length']:.2f}"
    return note


@contextlib.contextmanager
def memory_advice(options: str) -> Iterator[None]:
    """Errors of too little memory name the options to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        out = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not out:
            raise
        reason = str(error).partition("\n")[0]
        raise MemoryError(f"lower {options} ({reason})") from error
