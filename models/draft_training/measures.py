"""What a draft would accept of held-out texts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Model, Params
from globalres_jax.draft_laws import IID
from globalres_jax.losses import acceptance_rate, kl_divergence
from globalres_jax.models.draft_training.objective import (
    counted_at,
    mean_over,
    rollout,
    target_rows,
)
from globalres_jax.models.draft_training.teacher import Batch, Lessons
from globalres_jax.models.drafts import DraftConfig
from globalres_jax.transport.plan import optimal_acceptance_rate

#: Numbers of drafts whose optimal acceptance is measured.
COUNTS = (1, 2, 4)
#: Length of the chain whose accepted length is measured.
CHAIN = 4

#: Drafts come from so many likeliest tokens, as in decoding by default.
_SUPPORT = 256
#: Rows of a batch that more than one draft is measured on; each takes a solve.
_SOLVED = 16


class Measures(NamedTuple):
    """Means over held-out texts.

    Attributes:
      divergence: KL(p || q) in nats, of the tokens that the draft has.
      acceptance: [3] optimal acceptance rate of 1, 2 and 4 independent drafts.
      by_depth: [CHAIN] acceptance rate of one draft, so many tokens below a root.
      accepted_length: drafts that a chain of `CHAIN` has accepted, of which each is
        accepted with probability min(1, p / q): a mean over texts that were sampled
        from the target at temperature 1.
    """

    divergence: Array
    acceptance: Array
    by_depth: Array
    accepted_length: Array

    def as_json(self) -> dict[str, Any]:
        """By name, as floats."""
        rates = {
            f"acceptance_{n}": float(rate)
            for n, rate in zip(COUNTS, self.acceptance, strict=True)
        }
        return {
            "kl": float(self.divergence),
            **rates,
            "acceptance_by_depth": [float(rate) for rate in self.by_depth],
            "accepted_length": float(self.accepted_length),
        }


class _Seen(NamedTuple):
    """What is looked at in one step of a rollout.

    Attributes:
      divergence: [] mean KL(p || q).
      acceptance: [] mean acceptance rate of one draft.
      solved: [_SOLVED, N] logits at some of the rows.
      ratio: [B, L] chance that the token that followed is accepted where drafted.
    """

    divergence: Array
    acceptance: Array
    solved: Array
    ratio: Array


def measure(
    params: Params, config: DraftConfig, target: Model, batch: Batch
) -> Measures:
    """Measures of a batch of held-out texts."""
    batch = batch.with_teacher(target)
    p = target_rows(target, config, batch)
    counted = jnp.asarray(batch.counted)
    flat = counted.reshape(-1)
    some = jnp.linspace(0, jnp.maximum(flat.sum() - 1, 0), _SOLVED).astype(int)
    chosen = jnp.argsort(~flat, stable=True)[some]
    place, known = _places(config, batch.tokens)

    def following(rows: Array) -> Array:
        return jnp.take_along_axis(rows, place[:, :, None], axis=-1)[:, :, 0]

    def look(step: Array, logits: Array, _: Array) -> _Seen:
        here = counted_at(batch, step)
        ratio = following(jax.nn.softmax(logits)) / jnp.maximum(following(p), 1e-30)
        return _Seen(
            mean_over(here, kl_divergence(p, logits)),
            mean_over(here, acceptance_rate(p, logits)),
            logits.reshape(-1, logits.shape[-1])[chosen],
            jnp.where(known, jnp.minimum(1, ratio), 0),
        )

    seen = rollout(params, config, target, batch, CHAIN, look)
    return Measures(
        seen.divergence[0],
        _optima(p.reshape(-1, p.shape[-1])[chosen], jax.nn.softmax(seen.solved[0])),
        seen.acceptance,
        _chain(seen.ratio, counted),
    )


def _optima(p: Array, q: Array) -> Array:
    """[3] mean optimum of each of `COUNTS` drafts over rows [R, N] of both."""
    # What the draft lacks is one more token, which it never drafts.
    rest = jnp.maximum(1 - p.sum(-1, keepdims=True), 0)
    p = jnp.concatenate([p, rest], axis=-1)
    q = jnp.concatenate([q, jnp.zeros_like(rest)], axis=-1)

    def of_number(n: Array) -> Array:
        def one(row):
            return optimal_acceptance_rate(row[0], IID(row[1], n, _SUPPORT))

        return jnp.mean(jax.lax.map(one, (p, q)))

    return jax.lax.map(of_number, jnp.asarray(COUNTS))


def _places(config: DraftConfig, tokens: Array) -> tuple[Array, Array]:
    """[B, L] where the draft has the token that follows each, and whether it has."""
    last = max(config.ids)
    places = np.full(last + 2, -1, np.int32)
    places[np.asarray(config.ids)] = np.arange(len(config.ids))
    following = jnp.minimum(_ahead(tokens, 1), last + 1)
    found = jnp.asarray(places)[following]
    return jnp.maximum(found, 0), found >= 0


def _chain(ratio: Array, counted: Array) -> Array:
    """Mean accepted length below every root, from ratios [CHAIN, B, L]: [].

    With x drawn from p, min(1, q(x) / p(x)) has the mean sum_x min(p, q), and where x
    is accepted, it has the law that accepted drafts have.
    """
    alive, total, roots = jnp.ones_like(ratio[0]), jnp.zeros_like(ratio[0]), counted
    for step in range(CHAIN):
        alive *= _ahead(ratio[step], step)
        total += alive
        roots &= _ahead(counted, step)
    return mean_over(roots, total)


def _ahead(x: Array, count: int) -> Array:
    """[B, L] what `x` holds so many places further; nothing behind its end."""
    return jnp.pad(x[:, count:], ((0, 0), (0, count)))


def measure_all(look, params: Params, lessons: Lessons, batch: int) -> Measures:
    """Means of `look(params, batch)` over whole batches of held-out texts."""
    batch = min(batch, len(lessons))
    found = [
        look(params, lessons.rows(np.arange(start, start + batch)))
        for start in range(0, len(lessons) - batch + 1, batch)
    ]
    return jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *found)
