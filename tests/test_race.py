"""The quadrature and the dual, against enumeration and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distributions

import globalres_jax as gr
from globalres_jax.transport.hessian import curvature
from globalres_jax.transport.iid_race import (
    LOG_WEIGHT_BOUND,
    dual_objective,
    pick_law,
)
from globalres_jax.transport.plan import race_problem


def enumerated_pick_law(q, weights, n):
    """beta by summing over all tuples of drafts."""
    drafts = np.asarray(gr.testing.draft_tuples(gr.IID(jnp.asarray(q), n)))
    chance = np.prod(q[drafts], axis=1)
    share = weights[drafts] / (1 + weights[drafts].sum(1, keepdims=True))
    beta = np.zeros(len(q))
    np.add.at(beta, drafts, chance[:, None] * share)
    return beta


def problem_and_weights(seed, n, dtype, vocab_size=5):
    p, q = next(distributions(vocab_size, seed, 1))
    rng = np.random.default_rng(seed)
    log_weights = rng.uniform(-8, LOG_WEIGHT_BOUND, vocab_size)
    log_weights[0] = LOG_WEIGHT_BOUND
    law = gr.IID(jnp.asarray(q, dtype), n)
    problem, _ = race_problem(
        jnp.asarray(p, dtype), law.probs, jnp.asarray(n, dtype), jnp.zeros((), dtype)
    )
    return problem, jnp.asarray(log_weights, dtype)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_pick_law_is_the_enumerated_one(n, seed, float64):
    problem, a = problem_and_weights(seed, n, jnp.float64)
    beta = enumerated_pick_law(np.asarray(problem.q), np.exp(np.asarray(a)), n)
    np.testing.assert_allclose(pick_law(problem, jnp.exp(a)), beta, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_pick_law_in_float32(n):
    problem, a = problem_and_weights(1, n, jnp.float32)
    beta = enumerated_pick_law(
        np.asarray(problem.q, np.float64), np.exp(np.asarray(a, np.float64)), n
    )
    np.testing.assert_allclose(pick_law(problem, jnp.exp(a)), beta, atol=1e-6)


def test_pick_law_with_many_drafts(float64):
    """n = 64 by sampling, 5 standard errors."""
    problem, a = problem_and_weights(2, 64, jnp.float64)
    q, weights = np.asarray(problem.q), np.exp(np.asarray(a))
    rng = np.random.default_rng(0)
    drafts = rng.choice(5, p=q / q.sum(), size=(20_000, 64))
    share = weights[drafts] / (1 + weights[drafts].sum(1, keepdims=True))
    per_token = np.stack([(share * (drafts == i)).sum(1) for i in range(5)], 1)
    error = per_token.std(0) / np.sqrt(20_000)
    beta = np.asarray(pick_law(problem, jnp.exp(a)))
    assert np.all(np.abs(beta - per_token.mean(0)) <= 5 * error + 1e-9)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_gradient_and_hessian_of_the_dual(n, float64):
    problem, a = problem_and_weights(3, n, jnp.float64)
    # Inside the bound, where differentiation of exp(-t w) loses nothing.
    a = jnp.minimum(a, 5.0)
    curve = curvature(problem, jnp.exp(a))
    np.testing.assert_allclose(curve.pick, pick_law(problem, jnp.exp(a)), atol=1e-12)
    gradient = jax.grad(lambda a: dual_objective(problem, a))(a)
    np.testing.assert_allclose(gradient, curve.pick - problem.p, atol=1e-9)
    hessian = jnp.diag(curve.diagonal) - curve.factors.T @ curve.factors
    numeric = jax.jacfwd(lambda a: pick_law(problem, jnp.exp(a)))(a)
    # On half of the nodes, but its row sums are exact.
    np.testing.assert_allclose(hessian, numeric, atol=1e-6)
    np.testing.assert_allclose(hessian.sum(1), numeric.sum(1), atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_hessian_in_float32_is_near_and_positive(n):
    problem, a = problem_and_weights(7, n, jnp.float32)
    curve = curvature(problem, jnp.exp(a))
    hessian = np.diag(curve.diagonal) - curve.factors.T @ curve.factors
    assert np.linalg.eigvalsh(hessian).min() >= -1e-6 * np.max(curve.diagonal)
    inner = jnp.minimum(a, 5.0)
    curve = curvature(problem, jnp.exp(inner))
    hessian = np.diag(curve.diagonal) - curve.factors.T @ curve.factors
    numeric = jax.jacfwd(lambda a: pick_law(problem, jnp.exp(a)))(inner)
    np.testing.assert_allclose(hessian, numeric, atol=3e-2 * np.max(curve.diagonal))


@pytest.mark.parametrize("n", [1, 3])
def test_dual_objective_is_the_enumerated_one(n, float64):
    problem, a = problem_and_weights(4, n, jnp.float64)
    a = jnp.minimum(a, 5.0)
    q = np.asarray(problem.q)
    drafts = np.asarray(gr.testing.draft_tuples(gr.IID(problem.q, n)))
    chance = np.prod(q[drafts], axis=1)
    weights = np.exp(np.asarray(a))
    expected = (chance * np.log1p(weights[drafts].sum(1))).sum()
    expected -= float((problem.p * a).sum())
    assert float(dual_objective(problem, a)) == pytest.approx(expected, abs=1e-9)
