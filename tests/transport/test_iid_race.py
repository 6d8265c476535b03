"""The quadrature and the dual, against enumeration and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distributions

import globalres_jax as gr
from globalres_jax.transport.iid_race import iid_race
from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND

# One program a precision: the number of drafts is data.
_pick_law = jax.jit(lambda race, weights: race.pick_law(weights))
_curvature = jax.jit(lambda race, weights: race.curvature(weights))
_dual_and_slope = jax.jit(jax.value_and_grad(lambda a, race: race.dual_objective(a)))
_pick_slopes = jax.jit(jax.jacfwd(lambda a, race: race.pick_law(jnp.exp(a))))
_race = jax.jit(iid_race)


def enumerated(q, n):
    """Tuples of drafts and their probabilities."""
    drafts = np.asarray(gr.testing.draft_tuples(gr.IID(q, n)))
    return drafts, np.prod(np.asarray(q, np.float64)[drafts], axis=1)


def enumerated_pick_law(q, weights, n):
    """beta by summing over all tuples of drafts."""
    drafts, chance = enumerated(q, n)
    share = weights[drafts] / (1 + weights[drafts].sum(1, keepdims=True))
    beta = np.zeros(len(q))
    np.add.at(beta, drafts, chance[:, None] * share)
    return beta


def race_and_weights(seed, n, dtype, vocab_size=5):
    p, q = next(distributions(vocab_size, seed, 1))
    rng = np.random.default_rng(seed)
    log_weights = rng.uniform(-8, LOG_WEIGHT_BOUND, vocab_size)
    log_weights[0] = LOG_WEIGHT_BOUND
    p, q, n = (jnp.asarray(x, dtype) for x in (p, q, n))
    return _race(p, q, n, 1 - p.sum())[0], jnp.asarray(log_weights, dtype)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_pick_law_is_the_enumerated_one(n, seed, float64):
    race, a = race_and_weights(seed, n, jnp.float64)
    beta = enumerated_pick_law(np.asarray(race.q), np.exp(np.asarray(a)), n)
    np.testing.assert_allclose(_pick_law(race, jnp.exp(a)), beta, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_pick_law_in_float32(n):
    race, a = race_and_weights(1, n, jnp.float32)
    beta = enumerated_pick_law(np.asarray(race.q), np.exp(np.asarray(a, float)), n)
    np.testing.assert_allclose(_pick_law(race, jnp.exp(a)), beta, atol=1e-6)


def test_pick_law_with_many_drafts(float64):
    """n = 64 by sampling, 5 standard errors."""
    race, a = race_and_weights(2, 64, jnp.float64)
    q, weights = np.asarray(race.q), np.exp(np.asarray(a))
    rng = np.random.default_rng(0)
    drafts = rng.choice(5, p=q / q.sum(), size=(20_000, 64))
    share = weights[drafts] / (1 + weights[drafts].sum(1, keepdims=True))
    per_token = np.stack([(share * (drafts == i)).sum(1) for i in range(5)], 1)
    error = per_token.std(0) / np.sqrt(20_000)
    beta = np.asarray(_pick_law(race, jnp.exp(a)))
    assert np.all(np.abs(beta - per_token.mean(0)) <= 5 * error + 1e-9)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_gradient_and_hessian_of_the_dual(n, float64):
    race, a = race_and_weights(3, n, jnp.float64)
    # Inside the bound, where differentiation of exp(-t w) loses nothing.
    a = jnp.minimum(a, 5.0)
    curve = _curvature(race, jnp.exp(a))
    np.testing.assert_allclose(curve.pick, _pick_law(race, jnp.exp(a)), atol=1e-12)
    _, gradient = _dual_and_slope(a, race)
    np.testing.assert_allclose(gradient, curve.pick - race.p, atol=1e-9)
    hessian = np.diag(curve.diagonal) - curve.factors.T @ curve.factors
    numeric = _pick_slopes(a, race)
    # On half of the nodes, but its row sums are exact.
    np.testing.assert_allclose(hessian, numeric, atol=1e-6)
    np.testing.assert_allclose(hessian.sum(1), numeric.sum(1), atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_hessian_in_float32_is_near_and_positive(n):
    race, a = race_and_weights(7, n, jnp.float32)
    curve = _curvature(race, jnp.exp(a))
    hessian = np.diag(curve.diagonal) - curve.factors.T @ curve.factors
    assert np.linalg.eigvalsh(hessian).min() >= -1e-6 * np.max(curve.diagonal)
    inner = jnp.minimum(a, 5.0)
    curve = _curvature(race, jnp.exp(inner))
    hessian = np.diag(curve.diagonal) - curve.factors.T @ curve.factors
    numeric = _pick_slopes(inner, race)
    np.testing.assert_allclose(hessian, numeric, atol=3e-2 * np.max(curve.diagonal))


@pytest.mark.parametrize("n", [1, 3])
def test_dual_objective_is_the_enumerated_one(n, float64):
    race, a = race_and_weights(4, n, jnp.float64)
    a = jnp.minimum(a, 5.0)
    drafts, chance = enumerated(race.q, n)
    weights = np.exp(np.asarray(a))
    expected = (chance * np.log1p(weights[drafts].sum(1))).sum()
    expected -= float((race.p * a).sum())
    assert float(_dual_and_slope(a, race)[0]) == pytest.approx(expected, abs=1e-9)
