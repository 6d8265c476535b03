"""What a draft in training is asked: the target's rows, also where it drafts alone.

A draft of kind "feature" reads the target's features up to the root of a tree, and
below it its own. It is trained so (as EAGLE-3, arXiv 2503.01840): in step k of a
rollout every token is predicted from what the draft itself said k tokens ago.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax import losses
from globalres_jax.base import Array, Model, Params
from globalres_jax.models.draft_training.teacher import Batch
from globalres_jax.models.drafts import DraftConfig, draft_outputs, head_logits
from globalres_jax.models.drafts.training import assemble, shifted

#: By the name that the command line has for them.
LOSSES = {
    "kl": losses.kl_divergence,
    "reverse-kl": losses.reverse_kl_divergence,
    "jensen-shannon": losses.jensen_shannon,
    "total-variation": losses.total_variation,
    "lk": losses.lk,
    "lk-mixture": losses.lk_mixture,
    **{
        f"optimum-{n}": functools.partial(
            losses.negative_log_optimum, num_drafts=n, max_support=256
        )
        for n in (2, 4)
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is made small.

    Attributes:
      loss: one of `LOSSES`.
      rollout: steps that a draft of kind "feature" goes on from itself; 1 for none.
      decay: a step counts so much of the one before it.
      feature_weight: of the smooth L1 distance between its features and the target's,
        which the same head multiplies (EAGLE, arXiv 2401.15077).
    """

    loss: str = "kl"
    rollout: int = 3
    decay: float = 0.8
    feature_weight: float = 0.0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(
                f"loss: must be one of {', '.join(LOSSES)}; got {self.loss!r}"
            )
        if self.rollout < 1:
            raise ValueError(f"rollout: must be at least 1, got {self.rollout}")


def target_rows(target: Model, config: DraftConfig, batch: Batch) -> Array:
    """[B, L, N] the target's probabilities of the draft's tokens; at most 1 together.

    What it gives to others can never be drafted.
    """
    logits = head_logits(target, batch.features, jnp.asarray(config.ids))
    return jnp.exp(logits - batch.log_normalizer[:, :, None])


def rollout(
    params: Params,
    config: DraftConfig,
    target: Model,
    batch: Batch,
    steps: int,
    look: Callable[[Array, Array, Array], Any],
) -> Any:
    """What `look` makes of the draft k tokens below a root, for k from 0 on, stacked.

    In step k row l is about the token in place l + 1 of a tree whose root is the token
    in place l - k: it reads the target's features before the root, and the draft's own
    from there on. Drafts without features say the same at every depth.

    Args:
      params: of the draft.
      config: shape of the draft.
      target: the model.
      batch: with what the target says.
      steps: K.
      look: `look(step [], logits [B, L, N], features [B, L, D])`, a pytree of arrays.
        Neither is kept for the way back: they are computed again.
    """
    if not config.reads_features:
        said = draft_outputs(params, config, target, batch.tokens)
        return jax.lax.map(lambda step: look(step, *said), jnp.arange(steps))
    weights, function = assemble(params, config, target)
    tokens = batch.tokens
    count, length = tokens.shape
    places, earlier = jnp.arange(length), jnp.arange(steps)
    ago = places[:, None, None] - places[None, None, :]
    positions = jnp.broadcast_to(places[None], tokens.shape)

    @jax.checkpoint
    def one(carry: tuple, step: Array) -> tuple[tuple, Any]:
        cache, features = carry
        # Slots of the target's text down to the root, then one of each step since.
        since = (ago == (step - earlier)[None, :, None]) & (ago >= 0)
        seen = jnp.where((earlier == 0)[None, :, None], ago >= step, since)
        mask = seen.reshape(1, length, steps * length)
        x, cache = function.read(
            weights,
            tokens,
            shifted(features),
            positions,
            cache,
            jnp.broadcast_to(mask, (count, *mask.shape[1:])),
        )
        seen = look(step, function.logits(weights, x), x)
        return (cache, x.astype(features.dtype)), seen

    start = function.init_cache(count, steps * length), batch.features
    return jax.lax.scan(one, start, earlier)[1]


def training_loss(
    params: Params,
    config: DraftConfig,
    target: Model,
    batch: Batch,
    objective: Objective,
    dtype=jnp.float32,
) -> Array:
    """Mean loss over the counted rows of a batch, and the steps of a rollout: []."""
    batch = jax.lax.stop_gradient(batch.with_teacher(target))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    p = target_rows(target, config, batch)
    steps = objective.rollout if config.reads_features else 1

    def look(step: Array, logits: Array, x: Array) -> Array:
        rows = LOSSES[objective.loss](p, logits)
        if objective.feature_weight:
            far = x.astype(jnp.float32) - batch.features
            smooth = jnp.where(jnp.abs(far) < 1, 0.5 * far**2, jnp.abs(far) - 0.5)
            rows += objective.feature_weight * smooth.mean(-1)
        return mean_over(counted_at(batch, step), rows)

    found = rollout(params, config, target, batch, steps, look)
    weights = objective.decay ** np.arange(steps)
    return jnp.sum(found * (weights / weights.sum()))


def counted_at(batch: Batch, step: Array) -> Array:
    """[B, L] rows that count in a step of a rollout: there must be a root."""
    places = jnp.arange(batch.tokens.shape[1])[None]
    return jnp.asarray(batch.counted) & (places >= step)


def mean_over(counted: Array, rows: Array) -> Array:
    """Mean of the counted rows: []."""
    return jnp.sum(jnp.where(counted, rows, 0)) / jnp.maximum(jnp.sum(counted), 1)
