"""Large vocabularies: pools, the curve of weights, and sums that keep small terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.draft_laws.law import ratio_order
from globalres_jax.numerics.rows import map_rows
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport import pools as pooling
from globalres_jax.transport.iid_race import RaceProblem, pick_law
from globalres_jax.transport.plan import race_problem
from globalres_jax.transport.subset_selection import optimal_prefix, optimal_threshold
from globalres_jax.transport.weight_curve import solve_on_curve

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


def race_of(p, q, n, dtype=jnp.float64):
    p, q = jnp.asarray(p, dtype), jnp.asarray(q, dtype)
    return race_problem(p, q, jnp.asarray(n, dtype), jnp.zeros((), dtype))[0]


def test_pools_keep_all_mass_of_similar_tokens(float64):
    p, q = (jnp.asarray(x) for x in zipf_pair(0))
    p = p.at[5].set(0)
    pools = pooling.pool_by_ratio(p, q, jnp.asarray(4.0))
    np.testing.assert_allclose(pools.p.sum(), p.sum(), rtol=1e-12)
    np.testing.assert_allclose(pools.q.sum(), q.sum() - q[5], rtol=1e-12)
    own = len(pools.own)
    np.testing.assert_array_equal(pools.q[:own], q[pools.own])
    assert float((p + q)[pools.own].min()) == float(jnp.sort(p + q)[-own])
    # The finely spaced pools are in order, and as narrow as they say.
    near = slice(own, own + pooling.NEAR_POOLS)
    ratio = np.log(np.asarray(pools.p[near] / pools.q[near]))
    assert np.all(np.diff(ratio) > 0)
    assert np.diff(ratio).max() < 0.2


@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_swept_threshold_is_the_sorted_one(n, float64):
    for seed in range(4):
        p, q = (jnp.asarray(x) for x in zipf_pair(seed, vocab_size=2000))
        p = (p.at[3].set(0).at[7].multiply(2e3)) / 3
        q = q.at[11].set(0)
        order = ratio_order(p, q)
        outside = 1 - p.sum(), jnp.asarray(0.01)
        exact = optimal_prefix(p[order], q[order], n, *outside).excess
        swept = optimal_threshold(p, q, jnp.asarray(float(n)), *outside)
        assert float(swept.excess) == pytest.approx(float(exact), abs=1e-12)
        inside_p, inside_q = (x[swept.members].sum() for x in (p, q))
        lacking = 1 - q.sum() - 0.01
        assert float((inside_q + lacking) ** n - inside_p) == pytest.approx(
            float(exact), abs=1e-12
        )


@pytest.mark.parametrize("n", [2, 10])
def test_the_curve_is_the_solution_of_all_tokens(n, float64):
    """Log-weights read off the curve against Newton on every token."""
    problem = race_of(*zipf_pair(2, vocab_size=600), n)
    solver = gr.ProjectedNewton(tol=1e-6)
    found, iterations = jax.jit(lambda race: solve_on_curve(race, solver))(problem)
    assert float(found.gap) <= 1e-6 and int(iterations) > 1
    np.testing.assert_allclose(
        found.pick, pick_law(problem, jnp.exp(found.log_weights)), atol=1e-14
    )
    exact = gr.ProjectedNewton(tol=1e-9).run(found.log_weights, problem).params
    matter = (problem.p > 1e-6) & (exact < 20)
    assert int(matter.sum()) > 200
    assert float(jnp.abs(jnp.where(matter, found.log_weights - exact, 0)).max()) < 1e-2


def test_pools_alone_would_not_do():
    """Negative control: one weight a pool, without the curve, loses far more."""
    problem = race_of(*zipf_pair(1), 4, jnp.float32)
    pools = pooling.pool_by_ratio(problem.p, problem.q, problem.num_drafts)
    plan = gr.solve_transport(pools.p, gr.IID(pools.q, 4))
    shared = jnp.log(jnp.maximum(plan.weights, 1e-30))[pooling.OWN_POOLS :]
    place = jnp.argmin(
        jnp.abs(
            pooling.log_ratio(pools.p, pools.q)[None, pooling.OWN_POOLS :]
            - pooling.log_ratio(problem.p, problem.q)[:, None]
        ),
        axis=1,
    )
    flat = pick_law(problem, jnp.exp(shared[place]))
    best = gr.solve_transport(problem.p, gr.IID(problem.q, 4)).acceptance_rate
    assert float(jnp.minimum(flat, problem.p).sum()) < float(best) - 1e-3


def test_gradient_through_a_pooled_solution_is_the_finite_difference(float64):
    p, q = (jnp.asarray(x) for x in zipf_pair(4, vocab_size=400))
    solver = gr.ProjectedNewton(tol=1e-10)
    heavy = jnp.argsort(q)[-40:]

    def weight(logits):
        plan = gr.solve_transport(p, gr.IID(jax.nn.softmax(logits), 3), solver)
        light = jnp.where(plan.weights < 50, plan.weights, 0)
        return jnp.sum((light * plan.pick)[heavy]), plan.gap

    point = jnp.log(q)
    (_, gap), gradient = jax.jit(jax.value_and_grad(weight, has_aux=True))(point)
    assert float(gap) <= 1e-9
    weight = jax.jit(weight)
    for i in np.asarray(heavy[-3:]):
        step = jnp.zeros(400).at[i].set(1e-4)
        difference = (weight(point + step)[0] - weight(point - step)[0]) / 2e-4
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-3, atol=1e-6)


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


def test_flat_distributions_are_solved_too():
    p, q = zipf_pair(1, noise=1.5)
    flat = [x**0.2 / (x**0.2).sum() for x in (p, q)]
    p, q = (jnp.asarray(x, jnp.float32) for x in flat)
    plan = jax.jit(lambda p, q: gr.solve_transport(p, gr.IID(q, 4)))(p, q)
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
    problem = RaceProblem(p, q32, jnp.float32(4), zero, zero, zero)
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
