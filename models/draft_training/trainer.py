"""The steps of a training run, from a checkpoint to the best draft."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from globalres_jax.base import Array, Model, Params
from globalres_jax.models.draft_training.checkpoints import Checkpoints
from globalres_jax.models.draft_training.measures import Measures, measure, measure_all
from globalres_jax.models.draft_training.objective import Objective, training_loss
from globalres_jax.models.draft_training.teacher import Batch, Lessons
from globalres_jax.models.drafts import DraftConfig
from globalres_jax.models.placement import first_device
from globalres_jax.sharding import gather, place_rows

LOG = "log.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and how fast, a draft learns.

    Attributes:
      steps: number of updates.
      batch: texts in each.
      peak: largest step size of AdamW, after a warm-up and before a cosine.
      weight_decay: of AdamW.
      look: steps between two looks at held-out texts, each of which keeps a checkpoint.
      seed: of the order of the texts.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32.
    """

    steps: int = 2000
    batch: int = 8
    peak: float = 1e-3
    weight_decay: float = 0.01
    look: int = 100
    seed: int = 0
    dtype: str = "float32"


class State(NamedTuple):
    """What one step hands to the next.

    Attributes:
      step: [] updates so far.
      params: of the draft.
      optimizer: its state.
      best: the parameters that did best on held-out texts.
      best_length: [] the accepted length that these have.
    """

    step: Array
    params: Params
    optimizer: Any
    best: Params
    best_length: Array


class Trainer(NamedTuple):
    """The compiled functions of a run.

    Attributes:
      start: `start(params) -> State`.
      update: `update(state, batch) -> State, loss []`.
      look: `look(params, batch) -> Measures`.
    """

    start: Callable[[Params], State]
    update: Callable[[State, Batch], tuple[State, Array]]
    look: Callable[[Params, Batch], Measures]


def make_trainer(
    target: Model,
    config: DraftConfig,
    objective: Objective,
    schedule: Schedule,
    mesh: Mesh | None = None,
) -> Trainer:
    """The functions of a run; rows of a batch are split over `data` of the mesh."""
    rule = optimizer(schedule)
    dtype = jnp.dtype(schedule.dtype)

    def start(params: Params) -> State:
        state = State(
            jnp.int32(0), params, rule.init(params), params, jnp.float32(-jnp.inf)
        )
        return state

    # The target's arrays are arguments: as constants they would be copied and folded.
    @jax.jit
    def update(target: Model, state: State, batch: Batch) -> tuple[State, Array]:
        loss = functools.partial(
            training_loss,
            config=config,
            target=target,
            batch=batch,
            objective=objective,
            dtype=dtype,
        )
        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, moved = rule.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(step=state.step + 1, params=params, optimizer=moved)
        return gather(mesh, (state, value))

    @jax.jit
    def look(target: Model, params: Params, batch: Batch) -> Measures:
        return gather(mesh, measure(params, config, target, batch))

    def placed(function: Callable) -> Callable:
        def call(state, batch: Batch):
            return function(target, state, place_rows(mesh, batch))

        return call

    # Placed by decree, as the results of a step are: else the second is compiled anew.
    begin, place = jax.jit(start), _everywhere(mesh)
    return Trainer(
        lambda params: jax.device_put(begin(params), place),
        placed(update),
        placed(look),
    )


def _everywhere(mesh: Mesh | None) -> Sharding:
    """Whole on every device of a mesh, or on the one that there is."""
    if mesh is None:
        return SingleDeviceSharding(first_device())
    return NamedSharding(mesh, PartitionSpec())


def optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipped gradients."""
    steps, peak = schedule.steps, schedule.peak
    warm_up = min(100, steps // 10 + 1)
    rates = optax.warmup_cosine_decay_schedule(0.0, peak, warm_up, steps, 0.02 * peak)
    decay = schedule.weight_decay
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rates, b2=0.95, weight_decay=decay),
    )


def rows_of_step(step: int, count: int, batch: int, seed: int) -> np.ndarray:
    """[B] the texts of a step: every epoch has an order of its own.

    A function of its arguments alone, so that a run goes on where it was.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = {
        epoch: np.random.default_rng([seed, epoch]).permutation(count)
        for epoch in np.unique(places // count).tolist()
    }
    return np.asarray([epochs[place // count][place % count] for place in places])


def train(
    trainer: Trainer,
    params: Params,
    lessons: Lessons,
    held: Lessons,
    schedule: Schedule,
    folder: Path,
    report: Callable[[int, float, dict], None] = lambda *_: None,
) -> tuple[Params, dict]:
    """The best parameters on held-out texts, and what was measured of them.

    Goes on from the newest checkpoint in the folder, to the same losses as if it had
    never ended. Every loss and every look is a line of `log.jsonl`.

    Args:
      trainer: of `make_trainer`.
      params: to begin with.
      lessons: to learn from.
      held: to look at.
      schedule: how long.
      folder: of checkpoints and log.
      report: `report(step, loss, measures)` after each step.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    state = trainer.start(params)
    log = Log(folder / LOG)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state)
        log.cut(int(state.step))
        seen = log.last_look()
    else:
        log.cut(-1)
        state, seen = _look(trainer, state, held, schedule, log)
    for step in range(int(state.step), schedule.steps):
        rows = rows_of_step(step, len(lessons), schedule.batch, schedule.seed)
        state, loss = trainer.update(state, lessons.rows(rows))
        log.add({"step": step + 1, "loss": float(loss)})
        if (step + 1) % schedule.look == 0 or step + 1 == schedule.steps:
            state, seen = _look(trainer, state, held, schedule, log)
            checkpoints.save(step + 1, state)
        report(step + 1, float(loss), seen)
    checkpoints.close()
    return state.best, log.best_look()


def _look(
    trainer: Trainer, state: State, held: Lessons, schedule: Schedule, log: Log
) -> tuple[State, dict]:
    """What the draft accepts now; it is the best if it accepts more than those before.

    Where it begins counts, too: least squares may have done better than few steps do.
    """
    found = measure_all(trainer.look, state.params, held, schedule.batch)
    seen = found.as_json()
    log.add({"step": int(state.step), **seen})
    length = np.float32(seen["accepted_length"])
    if length > state.best_length:
        # Placed as it was: else the next step is compiled anew.
        length = jax.device_put(length, state.best_length.sharding)
        state = state._replace(best=state.params, best_length=length)
    return state, seen


class Log:
    """Lines of JSON, of which those behind a checkpoint are taken back."""

    def __init__(self, path: Path):
        """Opens the file at `path`, which may not be there yet."""
        self._path = path
        self._lines = []
        if path.is_file():
            lines = path.read_text("utf-8").splitlines()
            self._lines = [json.loads(line) for line in lines]

    def cut(self, step: int) -> None:
        """Forgets what came after a step."""
        self._lines = [line for line in self._lines if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._path.write_text(text, "utf-8")

    def add(self, line: dict) -> None:
        """Writes a line."""
        self._lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def looks(self) -> list[dict]:
        """The lines of looks at held-out texts."""
        return [line for line in self._lines if "accepted_length" in line]

    def last_look(self) -> dict:
        """The newest of them."""
        return (self.looks() or [{}])[-1]

    def best_look(self) -> dict:
        """That of the longest accepted length."""
        return max(self.looks(), key=lambda line: line["accepted_length"])
