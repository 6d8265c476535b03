"""Drafts without replacement by clocks, in float32, against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax.draft_laws import clocks
from globalres_jax.transport.quadrature import quadrature

SIZE, DRAFTS = 12, 3
#: All ordered drafts [N, n].
TUPLES = np.array(list(itertools.permutations(range(SIZE), DRAFTS)))


def rows() -> np.ndarray:
    """[C, k] alike, falling slowly and fast, in two steps, and with a heavy head."""
    place, rng = np.arange(SIZE), np.random.default_rng(0)
    logs = [
        np.zeros(SIZE),
        -1.2 * np.log(1 + place) + rng.normal(size=SIZE),
        -6.5 * place,
        np.where(place < 2, 0, -69),
        np.where(place < 1, 0, -30 - 35 * (place > 4)),
        np.where(place == 3, 0, -70 + rng.normal(size=SIZE)),
        -rng.uniform(0, 75, SIZE),
    ]
    q = np.exp(np.stack(logs))
    return (q / q.sum(1, keepdims=True)).astype(np.float32)


def chances(q: np.ndarray) -> np.ndarray:
    """[N] the probability of each of the ordered drafts, in float64."""
    chance, left = np.ones(len(TUPLES)), np.tile(q.astype(float), (len(TUPLES), 1))
    for drawn in TUPLES.T[:, :, None]:
        mass = np.take_along_axis(left, drawn, axis=1)[:, 0]
        chance = chance * mass / left.sum(1)
        np.put_along_axis(left, drawn, 0, axis=1)
    return chance


@jax.jit
def _pick_law(q, weights):
    nodes, measure = quadrature(q.dtype)
    survive = jnp.exp(-nodes[:, None] * weights[None])
    return weights * (measure @ clocks.laplace(q, DRAFTS, survive)[1])


def test_pick_law_is_the_enumerated_one_where_drafts_are_improbable():
    rng = np.random.default_rng(1)
    for q in rows():
        log_weights = np.clip(rng.normal(size=SIZE) * 8, -30, 24)
        log_weights[rng.integers(SIZE)] = 24
        weights = np.exp(log_weights).astype(np.float32)
        drawn = weights.astype(float)[TUPLES]
        share = chances(q)[:, None] * drawn / (1 + drawn.sum(1, keepdims=True))
        beta = np.bincount(TUPLES.ravel(), share.ravel(), minlength=SIZE)
        np.testing.assert_allclose(_pick_law(q, weights), beta, atol=1e-6)


def test_escape_is_the_enumerated_one():
    escape = jax.jit(lambda q: clocks.escape(q, DRAFTS))
    for q in rows():
        chance, furthest = chances(q), TUPLES.max(1)
        outside = [chance[furthest >= length].sum() for length in range(SIZE + 1)]
        np.testing.assert_allclose(escape(q), outside, atol=1e-6)


def test_rough_counts_are_near_and_zero_for_what_is_never_drafted():
    rough = jax.jit(lambda q: clocks.rough_counts(q, DRAFTS))
    for q in rows():
        counts = np.bincount(TUPLES.ravel(), np.repeat(chances(q), DRAFTS))
        np.testing.assert_allclose(rough(q), counts, atol=0.15)
    few = jnp.zeros(SIZE).at[jnp.array([2, 5])].set(0.5)
    assert rough(few).tolist() == np.isin(np.arange(SIZE), [2, 5]).tolist()


@pytest.mark.sweep
def test_many_drafts_of_few_tokens_do_not_overflow():
    """Where all drafts survive alike, L = e^n, and n of 22 tokens are drafted."""
    survive = jnp.full((1, 22), 0.9)
    value, mean = jax.jit(lambda e: clocks.laplace(jnp.full(22, 1 / 22), 16, e))(
        survive
    )
    np.testing.assert_allclose(value, 0.9**16, rtol=1e-5)
    np.testing.assert_allclose(mean, 16 / 22 * 0.9**16 * np.ones((1, 22)), rtol=1e-5)
