"""Plans: solved, certified, equal by both solvers, on hard and on real problems."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions

import globalres_jax as gr
from globalres_jax import models
from globalres_jax.transforms import probabilities


@pytest.fixture(scope="module")
def real_logits():
    """Logits of the embedded pair on a text of 48 tokens: two arrays [48, V]."""
    text = (
        "ROMEO:\nWhat light through yonder window breaks? It is the east, and "
        "Juliet is the sun. Arise, fair sun, and kill the envious moon, who is "
        "already sick and pale with grief.\n\nJULIET:\nO Romeo, wherefore art thou?"
    )
    pair = []
    for name in ("embedded", "embedded-draft"):
        model = models.load(name)
        tokens = jnp.asarray([model.tokenizer.encode(text)[:48]])
        cache = model.init_cache(1, 48)
        positions = jnp.arange(48)[None]
        mask = jnp.tril(jnp.ones((48, 48), bool))[None]
        logits, _ = model.apply(model.params, tokens, positions, cache, mask)
        pair.append(logits[0])
    return pair


def test_certificate_brackets_the_optimum(float64):
    for p, q in [*distributions(5, 0, 6), *adversarial(5).values()]:
        for n in (1, 2, 4):
            p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), n)
            plan = gr.solve_transport(p, law)
            best = float(gr.optimal_acceptance_rate(p, law))
            assert float(plan.acceptance_rate) <= best + 1e-9
            assert float(plan.upper_bound) >= best - 1e-9
            assert bool(plan.converged) and float(plan.gap) <= 1e-5
            assert np.isfinite(np.asarray(plan.weights)).all()


@pytest.mark.parametrize("top_k", [10, 100, 1000])
def test_every_real_problem_is_solved_in_float32(real_logits, top_k):
    target, draft = real_logits
    p, q = probabilities(target, top_k=top_k), probabilities(draft, top_k=top_k)

    @jax.jit
    def solve(num_drafts):
        return jax.vmap(
            lambda p, q: gr.solve_transport(p, gr.IID(q, num_drafts, max_support=top_k))
        )(p, q)

    for n in (2, 4, 5, 10):
        plan = solve(jnp.asarray(n))
        assert plan.gap.dtype == jnp.float32
        assert float(plan.gap.max()) <= 1e-4, n
        assert bool(plan.converged.all()), n
        chex.assert_tree_all_finite(plan)


def test_both_solvers_find_one_optimum(float64):
    for p, q in distributions(6, 1, 4):
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), 3)
        newton = gr.solve_transport(p, law)
        other = gr.solve_transport(p, law, gr.BoxLBFGS())
        assert bool(other.converged)
        np.testing.assert_allclose(
            newton.acceptance_rate, other.acceptance_rate, atol=2e-4
        )


def test_float32_agrees_with_float64(both_precisions):
    for p, q in distributions(6, 2, 6):
        plans = [
            gr.solve_transport(jnp.asarray(p, dtype), gr.IID(jnp.asarray(q, dtype), 4))
            for dtype in (jnp.float32, jnp.float64)
        ]
        assert plans[0].pick.dtype == jnp.float32
        np.testing.assert_allclose(
            plans[0].acceptance_rate, plans[1].acceptance_rate, atol=2e-5
        )


def test_float32_stays_where_float64_is_allowed(both_precisions):
    """On pools, too: their table must not widen what it is read for."""
    p, q = (jnp.asarray(x, jnp.float32) for x in next(distributions(400, 3, 1)))
    plan = gr.solve_transport(p, gr.IID(q, 4))
    assert plan.weights.dtype == plan.pick.dtype == plan.gap.dtype == jnp.float32
    assert bool(plan.converged)


def test_one_compilation_serves_every_number_of_drafts(float64):
    p, q = (jnp.asarray(x) for x in next(distributions(6, 3, 1)))
    solve = jax.jit(lambda n: gr.solve_transport(p, gr.IID(q, n)))
    batched = jax.vmap(solve)(jnp.arange(1, 7))
    for n in range(1, 7):
        rate = gr.optimal_acceptance_rate(p, gr.IID(q, n))
        np.testing.assert_allclose(batched.upper_bound[n - 1], rate, atol=1e-9)
        assert bool(batched.converged[n - 1])


def test_a_sub_distribution_is_bounded_by_its_mass(float64):
    """p(V) = 0.4: no rule can accept more, and the best one is certified."""
    p, q = next(distributions(5, 6, 1))
    law = gr.IID(jnp.asarray(q), 2)
    plan = gr.solve_transport(jnp.asarray(0.4 * p), law)
    best = float(gr.optimal_acceptance_rate(jnp.asarray(0.4 * p), law))
    assert best <= 0.4 + 1e-12
    assert best - 1e-5 <= float(plan.acceptance_rate) <= best + 1e-9
    assert float(jnp.minimum(plan.pick, 0.4 * p).sum()) == pytest.approx(
        float(plan.acceptance_rate), abs=1e-12
    )


def test_an_unfinished_solve_says_so():
    p, q = (jnp.asarray(x, jnp.float32) for x in next(distributions(6, 9, 1)))
    plan = gr.solve_transport(p, gr.IID(q, 4), gr.ProjectedNewton(maxiter=1))
    assert int(plan.iterations) == 1
    assert not bool(plan.converged) and float(plan.gap) > 1e-5


def test_implicit_gradient_of_the_plan_is_the_finite_difference(float64):
    """d beta / d logits through the optimality condition, not through the loop."""
    p, q = jnp.array([0.3, 0.25, 0.25, 0.2]), jnp.array([0.4, 0.3, 0.2, 0.1])
    solver = gr.ProjectedNewton(tol=1e-13)

    def weight(logits):
        plan = gr.solve_transport(p, gr.IID(jax.nn.softmax(logits), 2), solver)
        return jnp.sum(jnp.where(plan.weights < 1e6, plan.weights, 0))

    point = jnp.log(q)
    gradient = jax.grad(weight)(point)
    for i in range(4):
        step = jnp.zeros(4).at[i].set(1e-5)
        difference = (weight(point + step) - weight(point - step)) / 2e-5
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-3, atol=1e-4)


def test_bad_input_is_named():
    law = gr.IID(jnp.array([0.5, 0.5]), 2)
    with pytest.raises(ValueError, match="p: contains NaN"):
        gr.solve_transport(jnp.array([jnp.nan, 1.0]), law)
    with pytest.raises(ValueError, match="p: contains the negative"):
        gr.solve_transport(jnp.array([-0.5, 1.5]), law)
    with pytest.raises(ValueError, match="p: is zero everywhere"):
        gr.solve_transport(jnp.zeros(2), law)
    with pytest.raises(ValueError, match="p: has 3 tokens"):
        gr.solve_transport(jnp.array([0.5, 0.25, 0.25]), law)
    with pytest.raises(ValueError, match="p: sums to 2"):
        gr.solve_transport(jnp.array([1.0, 1.0]), law)
