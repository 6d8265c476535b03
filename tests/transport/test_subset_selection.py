"""The optimal subset: against all subsets, an LP, sorting, and differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions

import globalres_jax as gr
from globalres_jax.draft_laws.law import ratio_order
from globalres_jax.transport.subset_selection import optimal_prefix, optimal_threshold

_rate = jax.jit(lambda p, q, n: gr.optimal_acceptance_rate(p, gr.IID(q, n)))
_threshold = jax.jit(optimal_threshold)


@jax.jit
def _sorted(p, q, n, missing):
    order = ratio_order(p, q)
    return optimal_prefix(p[order], q[order], n, missing)


def brute_force(p, q, n):
    """min over all subsets of p(H) + 1 - q(H)^n."""
    masks = np.array(list(itertools.product([0, 1], repeat=len(p))))
    return (masks @ p + 1 - (masks @ q) ** n).min()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_sweep_finds_the_best_of_all_subsets(n, float64):
    for p, q in [*distributions(6, n, 10), *adversarial(6).values()]:
        assert float(_rate(p, q, n)) == pytest.approx(brute_force(p, q, n), abs=1e-12)


def test_it_is_the_value_of_the_linear_program(float64):
    for p, q in distributions(4, 3, 6):
        expected = gr.testing.linear_program(p, gr.IID(jnp.asarray(q), 3))
        # Two tokens that are never drawn nor wanted, for the shape of all others.
        p, q = (np.pad(x, (0, 2)) for x in (p, q))
        assert float(_rate(p, q, 3)) == pytest.approx(expected, abs=1e-9)


def test_more_drafts_never_hurt():
    p, q = (jnp.asarray(x, jnp.float32) for x in next(distributions(6, 4, 1)))
    rates = [float(_rate(p, q, n)) for n in range(1, 9)]
    assert rates[0] == pytest.approx(float(jnp.minimum(p, q).sum()), abs=1e-6)
    assert np.all(np.diff(rates) >= -1e-6)


def test_gradient_is_the_envelope_theorem(float64):
    """d alpha*/dp = 1[H*] and d alpha*/dq = -n q(H*)^(n-1) 1[H*], by differences."""
    p, q = next(distributions(5, 8, 1))

    def rate(logits):
        p, q = jax.nn.softmax(logits)
        return gr.optimal_acceptance_rate(p, gr.IID(q, 3))

    point = np.log(np.stack([p, q]) + 0.01)
    steps = 1e-6 * np.eye(10).reshape(10, 2, 5)
    rates = jax.jit(jax.vmap(rate))
    up, down = (np.asarray(rates(point + x)) for x in (steps, -steps))
    difference = (up - down) / 2e-6
    gradient = jax.jit(jax.grad(rate))(point)
    np.testing.assert_allclose(gradient.ravel(), difference, atol=1e-6)


def test_bad_targets_are_named():
    law = gr.IID(jnp.array([0.5, 0.5]), 2)
    with pytest.raises(ValueError, match="p: has 3 tokens, the draft law has 2"):
        gr.optimal_acceptance_rate(jnp.array([0.5, 0.25, 0.25]), law)
    with pytest.raises(ValueError, match="p: contains NaN"):
        gr.optimal_acceptance_rate(jnp.array([0.5, jnp.nan]), law)
    with pytest.raises(ValueError, match="p: is zero everywhere"):
        gr.optimal_acceptance_rate(jnp.zeros(2), law)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", [5, 300, 2000])
def test_among_sets_that_tie_all_tokens_are_chosen(size, dtype, both_precisions):
    for seed in range(5):
        # With p = q no set is better than another that the drafts exhaust.
        p = np.random.default_rng(seed).dirichlet(np.ones(size)).astype(dtype)
        best = _threshold(p, p, np.asarray(3, dtype), 1 - p.sum())
        assert np.all(best.members)
        assert float(best.excess) <= 1e-6


@functools.cache
def _zipf(seed: int):
    rng = np.random.default_rng(seed)
    logits = -1.3 * np.log(np.arange(1, 2001)) + rng.normal(size=(2, 2000))
    pair = np.exp(logits - logits.max(1, keepdims=True))
    return pair / pair.sum(1, keepdims=True)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_swept_threshold_is_the_sorted_one(n, float64):
    for seed in range(4):
        p, q = (x.copy() for x in _zipf(seed))
        p[3], p[7] = 0, p[7] * 2e3
        p /= 3
        # Mass that q lacks belongs to every set.
        q[11] = 0
        missing, n = 1 - p.sum(), float(n)
        exact = float(_sorted(p, q, n, missing).excess)
        swept = _threshold(p, q, n, missing)
        assert float(swept.excess) == pytest.approx(exact, abs=1e-12)
        members = np.asarray(swept.members)
        whole = (q[members].sum() + 1 - q.sum()) ** n - p[members].sum()
        assert whole == pytest.approx(exact, abs=1e-12)
