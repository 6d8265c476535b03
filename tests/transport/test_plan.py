"""Plans: solved, certified, equal by both solvers, on hard and on real problems."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions
from loaded import embedded, prefill

import globalres_jax as gr
from globalres_jax.transforms import probabilities

VOCAB_SIZE = 6


@jax.jit
def _solved(p, q, n):
    """Plan and optimum of n i.i.d. drafts; one program for every n."""
    law = gr.IID(q, n)
    return gr.solve_transport(p, law), gr.optimal_acceptance_rate(p, law)


@pytest.fixture(scope="module")
def real_logits():
    """Logits of the embedded pair on a text of 24 tokens: two arrays [24, V]."""
    text = (
        "ROMEO:\nWhat light through yonder window breaks? It is the east, and "
        "Juliet is the sun. Arise, fair sun, and kill the envious moon"
    )
    tokens = np.array([embedded()[0].tokenizer.encode(text)[:24]] * 2)
    return [prefill(model, tokens)[0][0] for model in embedded()]


def test_certificate_brackets_the_optimum(float64):
    for p, q in [*distributions(6, 0, 6), *adversarial(6).values()]:
        for n in (1, 2, 4):
            plan, best = _solved(p, q, n)
            assert float(plan.acceptance_rate) <= float(best) + 1e-9
            assert float(plan.upper_bound) >= float(best) - 1e-9
            assert bool(plan.converged) and float(plan.gap) <= 1e-5
            assert np.isfinite(np.asarray(plan.weights)).all()


@pytest.mark.parametrize("sizes", [(10, 100), (1000,)], ids=["by tokens", "on pools"])
def test_every_real_problem_is_solved_in_float32(real_logits, sizes):
    check_real_problems(real_logits, sizes)


@pytest.mark.sweep
@pytest.mark.usefixtures("optimised")
def test_so_it_is_by_what_users_run(real_logits):
    """Of pools there is a test in the file on pools."""
    check_real_problems(real_logits, (10, 100))


def check_real_problems(real_logits, sizes):
    target, draft = real_logits
    most = max(sizes)

    @jax.jit
    def solve(p, q, num_drafts):
        return jax.vmap(
            lambda p, q: gr.solve_transport(p, gr.IID(q, num_drafts, max_support=most))
        )(p, q)

    filtered = jax.jit(probabilities, static_argnames="top_k")
    for top_k in sizes:
        p, q = filtered(target, top_k=top_k), filtered(draft, top_k=top_k)
        for n in (2, 4, 10):
            plan = solve(p, q, jnp.asarray(n))
            assert plan.gap.dtype == jnp.float32
            assert float(plan.gap.max()) <= 1e-4, n
            assert bool(plan.converged.all()), n
            chex.assert_tree_all_finite(plan)
            assert plan.token_weights.shape == (24, most)
            assert jax.eval_shape(lambda x: x.weights, plan).shape == p.shape


def test_both_solvers_find_one_optimum(float64):
    other = jax.jit(lambda p, q: gr.solve_transport(p, gr.IID(q, 3), gr.BoxLBFGS()))
    for p, q in distributions(6, 1, 4):
        plan = other(p, q)
        assert bool(plan.converged)
        np.testing.assert_allclose(
            _solved(p, q, 3)[0].acceptance_rate, plan.acceptance_rate, atol=2e-4
        )


def test_float32_agrees_with_float64(both_precisions):
    for p, q in distributions(6, 2, 6):
        plans = [
            _solved(jnp.asarray(p, dtype), jnp.asarray(q, dtype), 4)[0]
            for dtype in (jnp.float32, jnp.float64)
        ]
        assert plans[0].pick.dtype == jnp.float32
        np.testing.assert_allclose(
            plans[0].acceptance_rate, plans[1].acceptance_rate, atol=2e-5
        )


def test_one_compilation_serves_every_number_of_drafts(float64):
    p, q = (jnp.asarray(x) for x in next(distributions(6, 3, 1)))
    batched = jax.jit(jax.vmap(lambda n: gr.solve_transport(p, gr.IID(q, n))))
    plans = batched(jnp.arange(1, 7))
    for n in range(1, 7):
        np.testing.assert_allclose(
            plans.upper_bound[n - 1], _solved(p, q, n)[1], atol=1e-9
        )
        assert bool(plans.converged[n - 1])


def test_a_sub_distribution_is_bounded_by_its_mass(float64):
    """p(V) = 0.4: no rule can accept more, and the best one is certified."""
    p, q = next(distributions(6, 6, 1))
    plan, best = _solved(0.4 * p, q, 2)
    assert float(best) <= 0.4 + 1e-12
    assert float(best) - 1e-5 <= float(plan.acceptance_rate) <= float(best) + 1e-9
    assert float(jnp.minimum(plan.pick, 0.4 * p).sum()) == pytest.approx(
        float(plan.acceptance_rate), abs=1e-12
    )


def test_solvers_are_equal_when_alike():
    for make in (gr.ProjectedNewton, gr.BoxLBFGS):
        assert make(tol=1e-3) == make(tol=1e-3) != make()
        assert hash(make(tol=1e-3)) == hash(make(tol=1e-3))
        assert not jax.tree.leaves(make())


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
