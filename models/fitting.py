"""Fits parameters to a loss, and the losses and batches of language models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

from globalres_jax.base import Array, Params


def windows(tokens: np.ndarray, batch: int, length: int, seed: int) -> Iterator[Array]:
    """Endless random windows [batch, length] of the token stream."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - length + 1, batch)
        yield jnp.asarray(tokens[starts[:, None] + np.arange(length)])


def cross_entropy(logits: Array, batch: Array) -> Array:
    """Mean nats per next token of `batch [B, L]` under `logits [B, L, V]`."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], batch[:, 1:]
    ).mean()


def overlap(target_logits: Array, draft_logits: Array) -> Array:
    """Mean single-draft acceptance rate sum_i min(p_i, q_i) over [B, L, V]."""
    p, q = jax.nn.softmax(target_logits), jax.nn.softmax(draft_logits)
    return jnp.minimum(p, q).sum(-1).mean()


def divergence(target_logits: Array, draft_logits: Array) -> Array:
    """Mean KL(p || q) in nats over [B, L, V]: what distillation makes small."""
    p = jax.nn.softmax(target_logits)
    return optax.kl_divergence(jax.nn.log_softmax(draft_logits), p).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is fitted, and how long.

    Attributes:
      name: shown while it runs.
      loss: `loss(params, fixed, batch, key) -> []`, differentiable in `params`.
      validate: `validate(params, fixed) -> []`, the less the better.
      fixed: arrays that both read, arguments of the compiled programs and not
        constants in them.
      steps: number of updates.
      peak: largest step size.
      seed: of the keys that `loss` gets.
    """

    name: str
    loss: Callable[[Params, Any, Array, Array], Array]
    validate: Callable[[Params, Any], Array]
    fixed: Any
    steps: int
    peak: float
    seed: int


def optimizer(objective: Objective) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipped gradients."""
    steps, peak = objective.steps, objective.peak
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(100, steps // 5 + 1), steps, 0.02 * peak
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=0.1),
    )


def fit(objective: Objective, params: Params, batches: Iterator[Array]) -> Params:
    """The best validated parameters on the way, looked at every hundred steps."""
    rule, fixed = optimizer(objective), objective.fixed
    validate = jax.jit(objective.validate)
    state = jax.jit(rule.init)(params)
    # Placed by decree, as the results of a step are: else the second is compiled anew.
    params, state = jax.device_put((params, state), jax.local_devices()[0])

    @jax.jit
    def update(params: Params, state: optax.OptState, fixed, batch: Array, key: Array):
        loss, gradient = jax.value_and_grad(objective.loss)(params, fixed, batch, key)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    best, best_params = np.inf, params
    with Progress() as progress:
        bar = progress.add_task(objective.name, total=objective.steps)
        for step in range(1, objective.steps + 1):
            key = jax.random.fold_in(jax.random.key(objective.seed), step)
            params, state, loss = update(params, state, fixed, next(batches), key)
            if step % 100 == 0 or step == objective.steps:
                held_out = float(validate(params, fixed))
                if held_out < best:
                    best, best_params = held_out, params
                progress.console.print(
                    f"{objective.name} step {step}: loss {float(loss):.3f}, "
                    f"validation {held_out:.3f}"
                )
            progress.update(bar, advance=1)
    return best_params
