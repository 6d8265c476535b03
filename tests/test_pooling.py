"""Pools stand for their tokens exactly; only acceptance is lost, and reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax import pooling
from globalres_jax.batching import map_rows
from globalres_jax.race import RaceProblem, pick_law
from globalres_jax.summation import blockwise_sum

VOCAB_SIZE = 12_000


def zipf_pair(seed: int, noise: float = 1.0, vocab_size: int = VOCAB_SIZE):
    rng = np.random.default_rng(seed)
    logits = -1.3 * np.log(np.arange(1, vocab_size + 1))
    pair = [logits + noise * rng.normal(size=vocab_size) for _ in range(2)]
    pair = [np.exp(x - x.max()) for x in pair]
    return [x / x.sum() for x in pair]


def exact_pick_law(q, weights, n):
    """beta of shared weights, in float64, at twice the library's fineness."""
    values, slot = np.unique(weights, return_inverse=True)
    mass = np.bincount(slot, q)
    s = np.arange(-45, 4, 0.15)
    nodes = np.exp(s)
    survive = np.exp(-nodes[:, None] * values[None])
    scale = n * 0.15 * np.exp(-nodes) * nodes * (survive @ mass) ** (n - 1)
    return q * (values * (scale @ survive))[slot]


def test_pools_keep_all_mass_and_expand_to_their_tokens(float64):
    p, q = (jnp.asarray(x) for x in zipf_pair(0))
    p = p.at[5].set(0)
    pools = pooling.pool_tail(p, q)
    size = pooling.HEAVY_TOKENS + pooling.TAIL_POOLS
    assert pools.p.shape == (size,)
    np.testing.assert_allclose(pools.p.sum(), p.sum(), rtol=1e-12)
    np.testing.assert_allclose(pools.q.sum(), q.sum() - q[5], rtol=1e-12)
    assert int(pools.slot[5]) == size
    slot = np.asarray(pools.slot)
    np.testing.assert_allclose(
        np.bincount(slot, np.asarray(q), size + 1)[:size], pools.q, rtol=1e-9
    )
    np.testing.assert_allclose(pools.expand(pools.q)[5], 0)


@pytest.mark.parametrize("n", [1, 4, 64])
def test_large_vocabularies_are_solved_and_lossless(n):
    """float32: every plan's pick law is the true one, to 2e-6 in L1."""
    for seed in range(3):
        p, q = zipf_pair(seed)
        law = gr.IID(jnp.asarray(q, jnp.float32), n)
        plan = gr.solve_transport(jnp.asarray(p, jnp.float32), law)
        assert bool(plan.converged) and float(plan.gap) <= 1e-4
        best = float(gr.optimal_acceptance_rate(jnp.asarray(p, jnp.float32), law))
        assert float(plan.upper_bound) == pytest.approx(best, abs=2e-5)
        beta = exact_pick_law(q, np.asarray(plan.weights, np.float64), n)
        assert np.abs(beta - np.asarray(plan.pick)).sum() <= 2e-6


def test_flat_distributions_are_refined_token_by_token():
    """No token is negligible: pools alone would lose far more than the tolerance."""
    p, q = zipf_pair(1, noise=1.5)
    flat = [x**0.2 / (x**0.2).sum() for x in (p, q)]
    p, q = (jnp.asarray(x, jnp.float32) for x in flat)
    pools = pooling.pool_tail(p, q)
    solve = jax.jit(lambda p, q: gr.solve_transport(p, gr.IID(q, 4)))
    coarse, plan = solve(pools.p, pools.q), solve(p, q)
    share = coarse.pick / jnp.maximum(pools.q, 1e-30)
    pooled = float(jnp.minimum(q * pools.expand(share), p).sum())
    assert pooled < float(plan.acceptance_rate) - 1e-4
    assert bool(plan.converged)
    beta = exact_pick_law(flat[1], np.asarray(plan.weights, np.float64), 4)
    assert np.abs(beta - np.asarray(plan.pick)).sum() <= 2e-6


def test_blockwise_sum_keeps_small_terms():
    values = np.full(60_000, 1e-6, np.float32)
    values[0] = 1
    exact = values.astype(np.float64).sum()
    assert abs(values.cumsum(dtype=np.float32)[-1] - exact) > 1e-4  # a running sum
    for total in (blockwise_sum(jnp.asarray(values)), jax.jit(blockwise_sum)(values)):
        assert float(total) == pytest.approx(exact, abs=1e-6)
    gradient = jax.grad(lambda x: blockwise_sum(x * x))(jnp.arange(200.0))
    np.testing.assert_allclose(gradient, 2 * np.arange(200.0))


def test_pick_law_of_fifty_thousand_tokens_in_float32():
    p, q = zipf_pair(3, vocab_size=49_152)
    weights = np.exp(np.random.default_rng(0).integers(-6, 25, 49_152).astype(float))
    zero = jnp.zeros((), jnp.float32)
    p, q32 = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
    problem = RaceProblem(p, q32, jnp.float32(4), zero, zero)
    beta = jax.jit(pick_law)(problem, jnp.asarray(weights, jnp.float32))
    assert np.abs(exact_pick_law(q, weights, 4) - np.asarray(beta)).sum() <= 2e-6


def test_rows_of_a_batch_are_the_single_solutions():
    pairs = [zipf_pair(seed, vocab_size=400) for seed in range(4)]
    p, q = (jnp.asarray(side, jnp.float32) for side in zip(*pairs, strict=True))

    def solve(p, q, n):
        return gr.solve_transport(p, gr.IID(q, n))

    n = jnp.array([1, 2, 5, 9])
    mapped = jax.jit(lambda *rows: map_rows(solve, *rows))(p, q, n)
    together = jax.jit(jax.vmap(solve))(p, q, n)
    for row in range(4):
        alone = solve(p[row], q[row], n[row])
        for batch in (mapped, together):
            assert bool(batch.converged[row])
            np.testing.assert_allclose(
                batch.acceptance_rate[row], alone.acceptance_rate, atol=2e-5
            )


def test_bfloat16_logits_are_accepted():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 50)) * 3, jnp.bfloat16)
    p, q = jax.nn.softmax(logits)
    plan = gr.solve_transport(p, gr.IID(q, 4))
    assert plan.pick.dtype == jnp.float32
    assert float(plan.gap) <= 1e-2  # p itself sums to 1 only within bfloat16
