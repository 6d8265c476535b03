"""Rollouts against the draft itself, root by root; what is counted; the losses."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from globalres_jax import models
from globalres_jax.commands import train_draft
from globalres_jax.models.draft_training.initial import _RIDGE, _stage, begin_draft
from globalres_jax.models.draft_training.measures import CHAIN, _chain
from globalres_jax.models.draft_training.objective import (
    LOSSES,
    Objective,
    counted_at,
    rollout,
    target_rows,
)
from globalres_jax.models.draft_training.teacher import Batch, Lessons
from globalres_jax.models.draft_training.texts import Texts
from globalres_jax.models.drafts import DraftConfig, draft_outputs
from globalres_jax.models.drafts.config import draft_shape
from globalres_jax.models.pairs import keep_layers

LENGTH, STEPS = 7, 3


@pytest.fixture(scope="module")
def taught():
    """A target, a draft, its parameters, and a batch with what the target says."""
    target = keep_layers(models.load("embedded"), (0,))
    ids = np.arange(3, 67)
    config = DraftConfig(kind="feature", ids=ids, num_heads=2, mlp_width=32)
    params = begin_draft(jax.random.key(0), config, target)
    tokens = np.random.default_rng(0).integers(0, 512, (2, LENGTH)).astype(np.int32)
    lengths = np.asarray([LENGTH, 5], np.int32)
    counted = np.arange(LENGTH) < lengths[:, None] - 1
    said = jax.jit(Batch(tokens, lengths, counted).with_teacher)(target)
    return target, config, params, jax.tree.map(np.asarray, said)


def test_a_rollout_goes_on_from_what_the_draft_said(taught):
    target, config, params, batch = taught

    @jax.jit
    def roll(params):
        return rollout(params, config, target, batch, STEPS, lambda _, *said: said)

    @jax.jit
    def read(features):
        return draft_outputs(params, config, target, batch.tokens, features)

    logits, own = map(np.asarray, roll(params))
    for last in range(LENGTH):
        for step in range(min(STEPS, last + 1)):
            root = last - step
            # The target's features before the root, the draft's own from there on.
            features = np.array(batch.features)
            for depth in range(step):
                place = root + depth
                features[:, place] = own[depth, :, place]
            alone = map(np.asarray, read(features))
            for found, wanted in zip((logits, own), alone, strict=True):
                np.testing.assert_allclose(
                    found[step, :, last], wanted[:, last], atol=2e-4, rtol=1e-3
                )


def test_target_rows_are_the_softmax_of_its_logits(taught):
    target, config, _, batch = taught
    p = np.asarray(target_rows(target, config, batch))
    score = jax.jit(lambda: target.apply.score(target.params, batch.tokens))
    whole = np.exp(log_softmax(score(), axis=-1))
    ids = np.asarray(config.ids)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(
            p[row, :length], whole[row, :length, ids].T, atol=1e-6
        )


def test_least_squares_leave_less_to_learn(taught):
    target, config, untaught, batch = taught
    shape = draft_shape(config, target.apply.config)
    rows = Texts(np.asarray(batch.tokens), np.zeros(2), batch.lengths)
    lessons = Lessons(rows, batch.counted, *map(np.asarray, batch[3:]))
    key, last = jax.random.key(0), ("blocks", 0, "mlp", "down")
    look = functools.partial(_stage, target=target, batch=batch, shape=shape)
    look = jax.jit(look, static_argnames="stage")
    errors = []
    for params in (untaught, begin_draft(key, config, target, lessons)):
        read, missing = look(params, stage=last)
        found = missing - read @ params["blocks"][0]["mlp"]["down"]["weight"][...].T
        counted = batch.counted & (np.arange(LENGTH) > 0)
        errors.append(np.square(found)[counted].mean())
    assert errors[1] < 0.5 * errors[0]
    # Of one map the solution is known: the gradient of the ridge is zero.
    inputs, wanted = look(params, stage=("input",))
    x, y = (np.float64(z)[counted] for z in (inputs, wanted))
    weight = np.float64(params["input"]["weight"][...].T)
    slope = x.T @ (x @ weight - y) + _RIDGE * np.square(x).sum() / len(x) * weight
    assert np.abs(slope).max() < 1e-3 * np.abs(x.T @ y).max()


def test_a_step_counts_where_there_is_a_root(taught):
    batch = taught[-1]
    for step in range(3):
        found = np.asarray(counted_at(batch, step))
        wanted = batch.counted & (np.arange(LENGTH) >= step)
        assert (found == wanted).all()


def test_a_chain_is_as_long_as_its_accepted_drafts():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 2)
    rows, length = 64, 128
    drawn = rng.choice(6, (CHAIN, rows, length), p=p)
    following = drawn[0]
    ratio = np.minimum(1, q / p)[following]
    counted = np.arange(length)[None] < np.full((rows, 1), length)
    found = jax.jit(_chain)(np.array([ratio] * CHAIN, np.float32), counted)
    alpha = np.minimum(p, q).sum()
    wanted = sum(alpha**k for k in range(1, CHAIN + 1))
    # Neighbouring roots share CHAIN tokens, so that fewer of them are independent.
    error = CHAIN / np.sqrt(rows * length / CHAIN)
    assert abs(float(found) - wanted) < 5 * error / 2


def test_unknown_losses_and_rollouts_are_refused():
    assert tuple(LOSSES) == train_draft.LOSSES
    with pytest.raises(ValueError, match="loss: must be one of kl, "):
        Objective(loss="hinge")
    with pytest.raises(ValueError, match="rollout: must be at least 1, got 0"):
        Objective(rollout=0)
