"""Traced rows with more tokens above zero than `max_support`: one law everywhere.

Nobody can count them under `jit`. The law is cut and renormalised when it is made, so
that what is sampled, what is solved and what is certified are one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distributions

import globalres_jax as gr

V = 6
LAWS = {
    "iid": lambda q: gr.IID(q, 2, max_support=3),
    "independent": lambda q: gr.Independent(jnp.stack([q, q[::-1]]), max_support=2),
    "two without replacement": lambda q: gr.WithoutReplacement(q, 2, max_support=3),
    "three without replacement": lambda q: gr.WithoutReplacement(q, 3, max_support=4),
    "top plus sample": lambda q: gr.TopPlusSample(q, 2, max_support=3),
    "deterministic": lambda q: gr.Deterministic(jax.lax.top_k(q, 2)[1], V),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.sweep) if "without" in name else name
        for name in LAWS
    ],
)
def test_what_is_sampled_is_what_is_certified(name, float64):
    @jax.jit
    @jax.vmap
    def everything(p, q):
        law = LAWS[name](q)
        plan = gr.solve_transport(p, law)
        rate = gr.optimal_acceptance_rate(p, law)
        return law, plan, plan.weights, plan.pick, rate

    pairs = np.array(list(distributions(V, 5, 2)))
    p, q = pairs[:, 0], (pairs[:, 1] + 0.02) / (1 + 0.02 * V)
    found = jax.tree.map(np.asarray, everything(p, q))
    tokens = None
    for row in range(len(p)):
        one = jax.tree.map(lambda x, row=row: x[row], found)
        law, plan, weights, pick, rate = one
        if tokens is None:
            tokens = np.asarray(gr.testing.draft_tuples(law))
            chances = jax.jit(
                jax.vmap(lambda law, x: law.draft_probability(x), (None, 0))
            )
        # 1. The law as it is drawn: only its own tokens, with all the mass.
        chance = np.asarray(chances(law, tokens))
        assert chance.sum() == pytest.approx(1, abs=1e-12)
        drawn = np.unique(tokens[chance > 0])
        assert len(drawn) <= len(law.tokens) < V
        assert set(drawn) <= set(np.asarray(law.tokens).tolist())
        # 2. Its linear program is below the bound, the plan within its gap.
        best = gr.testing.linear_program(p[row], law)
        assert float(rate) == pytest.approx(best, abs=1e-9)
        assert float(plan.upper_bound) >= best - 1e-9
        assert best - 2e-5 <= float(plan.acceptance_rate) <= best + 1e-9
        assert bool(plan.converged)
        # 3. The pick law is that of the race on the drawn tuples.
        share = weights[tokens] / (1 + weights[tokens].sum(1, keepdims=True))
        beta = np.zeros(V)
        np.add.at(beta, tokens, chance[:, None] * share)
        np.testing.assert_allclose(pick, beta, atol=1e-9)


def test_converged_is_honest(float64):
    """Solves cut short, and solves that were not, against the linear program."""
    pairs = np.array(list(distributions(V, 7, 12)))
    p, q = pairs[:, 0], (pairs[:, 1] + 0.02) / (1 + 0.02 * V)
    seen = set()
    for maxiter in (1, 3):
        solver = gr.ProjectedNewton(maxiter=maxiter)
        plans, best = solve_and_search(p, q, solver)
        assert int(plans.iterations.max()) <= maxiter
        assert np.all(plans.upper_bound >= best - 1e-9)
        close = np.asarray(plans.acceptance_rate >= best - solver.tol - 1e-9)
        converged = np.asarray(plans.converged)
        assert np.all(close | ~converged)
        seen |= set(converged.tolist())
    assert seen == {False, True}


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def solve_and_search(p, q, solver):
    law = LAWS["iid"](q)
    return gr.solve_transport(p, law, solver), optimum(p, law)


def optimum(p, law):
    """By all subsets of the law's tokens: min p(H) + 1 - Q(H)."""
    masks = jnp.asarray([[m >> i & 1 for i in range(3)] for m in range(8)], bool)
    held = jax.vmap(law.containment)(masks)
    return jnp.min(jnp.sum(jnp.where(masks, law.take(p)[None], 0), 1) + 1 - held)


def test_dense_views_of_stacked_plans(float64):
    """Leading axes of any number; zero beyond the law's tokens."""
    pairs = np.array(list(distributions(V, 2, 4))).reshape(2, 2, 2, V)
    pairs = (pairs + 0.01) / (1 + 0.01 * V)
    p, q = pairs[:, :, 0], pairs[:, :, 1]
    solve = jax.vmap(jax.vmap(lambda p, q: gr.solve_transport(p, LAWS["iid"](q))))
    plans = jax.jit(solve)(p, q)
    assert plans.token_weights.shape == plans.tokens.shape == (2, 2, 3)
    assert plans.weights.shape == plans.pick.shape == (2, 2, V)
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(plans.pick), np.asarray(plans.tokens), -1),
        plans.token_pick,
    )
    np.testing.assert_allclose(plans.weights.sum(-1), plans.token_weights.sum(-1))
    one = jax.tree.map(lambda x: x[1, 0], plans)
    np.testing.assert_array_equal(one.weights, plans.weights[1, 0])
