"""Large vocabularies: pools, the curve of weights, and exact pick laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.transport import pools as pooling
from globalres_jax.transport.iid_race import iid_race
from globalres_jax.transport.pooled_race import solve_pooled

VOCAB_SIZE = 12_000
SMALL = 600


@functools.cache
def zipf_pair(seed: int, vocab_size: int = VOCAB_SIZE):
    rng = np.random.default_rng(seed)
    logits = -1.3 * np.log(np.arange(1, vocab_size + 1))
    pair = [logits + rng.normal(size=vocab_size) for _ in range(2)]
    pair = [np.exp(x - x.max()) for x in pair]
    return [x / x.sum() for x in pair]


def exact_pick_law(q, weights, n):
    """beta of shared weights, in float64, at twice the library's fineness."""
    values, slot = np.unique(weights, return_inverse=True)
    mass = np.bincount(slot, q)
    nodes = np.exp(np.arange(-45, 4, 0.15))
    shared = np.zeros(len(values))
    survived = np.zeros(len(nodes))
    blocks = [slice(i, i + 2048) for i in range(0, len(values), 2048)]
    for block in blocks:
        survived += np.exp(-nodes[:, None] * values[None, block]) @ mass[block]
    scale = n * 0.15 * np.exp(-nodes) * nodes * survived ** (n - 1)
    for block in blocks:
        shared[block] = scale @ np.exp(-nodes[:, None] * values[None, block])
    return q * (values * shared)[slot]


def plan_of(p, q, n):
    return gr.solve_transport(p, gr.IID(q, n))


@jax.jit
@jax.vmap
def solve_rows(p, q, n):
    """Plans and optima of four problems: the one program for all in float32."""
    return plan_of(p, q, n), gr.optimal_acceptance_rate(p, gr.IID(q, n))


def solve(*problems):
    """Plans and optima of four problems (p, q, n)."""
    p, q, n = zip(*problems, strict=True)
    rows = jnp.asarray(np.stack(p), jnp.float32), jnp.asarray(np.stack(q), jnp.float32)
    solved = solve_rows(*rows, jnp.asarray(n))
    return [jax.tree.map(lambda x, row=row: x[row], solved) for row in range(4)]


def flat_pair():
    return [x**0.2 / (x**0.2).sum() for x in zipf_pair(1)]


_pick_law = jax.jit(lambda race, weights: race.pick_law(weights))


@jax.jit
def race_of(p, q, n):
    return iid_race(p, q, jnp.asarray(n, p.dtype), 1 - jnp.sum(p))[0]


def test_pools_keep_all_mass_of_similar_tokens(float64):
    p, q = zipf_pair(0)
    p[5] = 0
    pools = jax.jit(pooling.pool_by_ratio)(p, q, 4.0)
    pools = jax.tree.map(np.asarray, pools)
    np.testing.assert_allclose(pools.p.sum(), p.sum(), rtol=1e-12)
    np.testing.assert_allclose(pools.q.sum(), q.sum() - q[5], rtol=1e-12)
    own = len(pools.own)
    np.testing.assert_array_equal(pools.q[:own], q[pools.own])
    assert (p + q)[pools.own].min() == np.sort(p + q)[-own]
    # The finely spaced pools are in order, and as narrow as they say.
    near = slice(own, own + pooling.NEAR_POOLS)
    ratio = np.log(np.asarray(pools.p[near] / pools.q[near]))
    assert np.all(np.diff(ratio) > 0)
    assert np.diff(ratio).max() < 0.2


def test_the_curve_is_the_solution_of_all_tokens(float64):
    """Log-weights read off the curve against Newton on every token."""
    solver, precise = gr.ProjectedNewton(tol=1e-6), gr.ProjectedNewton(tol=1e-9)
    on_curve = jax.jit(lambda race: solve_pooled(race, solver))
    by_tokens = jax.jit(lambda start, race: precise.run(start, race).params)
    for n in (2, 10):
        race = race_of(*zipf_pair(2, SMALL), n)
        found, iterations = on_curve(race)
        assert float(found.gap) <= 1e-6 and int(iterations) > 1
        np.testing.assert_allclose(
            found.pick, _pick_law(race, jnp.exp(found.log_weights)), atol=1e-14
        )
        exact = by_tokens(found.log_weights, race)
        matter = (race.p > 1e-6) & (exact < 20)
        assert int(matter.sum()) > 200
        off = jnp.where(matter, found.log_weights - exact, 0)
        assert float(jnp.abs(off).max()) < 1e-2


@pytest.mark.parametrize("n", [1, 4, 64])
def test_large_vocabularies_are_solved_and_lossless(n, optimised):
    """float32: every plan's pick law is the true one, to 2e-6 in L1."""
    pairs = [zipf_pair(0), zipf_pair(1), zipf_pair(2), flat_pair()]
    for (_, q), (plan, best) in zip(
        pairs, solve(*((*x, n) for x in pairs)), strict=True
    ):
        assert bool(plan.converged) and float(plan.gap) <= 1e-4
        assert float(plan.upper_bound) == pytest.approx(float(best), abs=2e-5)
        beta = exact_pick_law(q, np.asarray(plan.weights, np.float64), n)
        assert np.abs(beta - np.asarray(plan.pick)).sum() <= 2e-6


def test_rows_of_a_batch_are_the_single_solutions(optimised):
    problems = [(*zipf_pair(seed), n) for seed, n in enumerate((1, 2, 5, 9))]
    together = solve(*problems)
    for row in (0, 3):
        alone, _ = solve(*[problems[row]] * 4)[0]
        assert bool(alone.converged)
        np.testing.assert_allclose(
            together[row][0].acceptance_rate, alone.acceptance_rate, atol=2e-5
        )


def test_pools_alone_would_not_do(optimised):
    """Negative control: one weight a pool, without the curve, loses far more."""
    p, q = zipf_pair(1)
    pools = jax.jit(pooling.pool_by_ratio)(*map(jnp.float32, (p, q, 4)))
    # Padded, for the program that there is.
    padded = [np.pad(x, (0, len(p) - len(x))) for x in (pools.p, pools.q)]
    (pooled, _), (plan, _), *_ = solve((*padded, 4), *[(p, q, 4)] * 3)
    shared = np.asarray(pooled.weights, float)[pooling.OWN_POOLS : len(pools.p)]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_pools = np.log(pools.p / pools.q)[pooling.OWN_POOLS :]
    distance = np.abs(of_pools[None] - np.log(p / q)[:, None])
    place = np.argmin(np.where(np.isnan(distance), np.inf, distance), axis=1)
    beta = exact_pick_law(q, shared[place], 4)
    assert np.minimum(beta, p).sum() < float(plan.acceptance_rate) - 1e-3


def test_pick_law_of_fifty_thousand_tokens_in_float32():
    p, q = zipf_pair(3, 49_152)
    weights = np.exp(np.random.default_rng(0).integers(-6, 25, 49_152).astype(float))
    race = race_of(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32), 4)
    beta = _pick_law(race, jnp.asarray(weights, jnp.float32))
    assert np.abs(exact_pick_law(q, weights, 4) - np.asarray(beta)).sum() <= 2e-6


def test_float32_stays_where_float64_is_allowed(both_precisions):
    """Tables must not widen what they are read for."""
    row = jax.ShapeDtypeStruct((400,), jnp.float32)
    plan = jax.eval_shape(lambda p, q: plan_of(p, q, 4), row, row)
    assert plan.token_weights.dtype == plan.token_pick.dtype == jnp.float32
    assert plan.gap.dtype == plan.upper_bound.dtype == jnp.float32


def test_bfloat16_logits_are_accepted():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 50)) * 3, jnp.bfloat16)
    p, q = jax.nn.softmax(logits)
    plan = jax.jit(plan_of)(p, q, 4)
    assert plan.pick.dtype == jnp.float32
    assert float(plan.gap) <= 1e-2  # p itself sums to 1 only within bfloat16
