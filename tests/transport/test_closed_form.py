"""Laws with all drafts fixed but one: their optimum, against the solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions, draft_laws

import globalres_jax as gr
from globalres_jax.transport.law_race import law_race
from globalres_jax.transport.newton import start_weights
from globalres_jax.transport.race import race_weights


@jax.jit
def _both_ways(p, law):
    """The closed form, its pick law by quadrature, the solver's pick law, excess."""
    closed = law.closed_form(p)
    race, members = law_race(p, law)
    solved = gr.ProjectedNewton().run(start_weights(race, members), race)
    integral = race.pick_law(jnp.minimum(closed.weights, 2e10))
    return closed, integral, race.pick_law(race_weights(race, solved.params)), race


@pytest.mark.parametrize("name", ["deterministic", "top plus sample"])
def test_closed_forms_are_what_the_solver_finds(name, float64):
    for p, q in [*distributions(6, 3, 3), *adversarial(6).values()]:
        law = draft_laws(q, 3).get(name)
        if law is None:
            continue
        own = np.asarray(law.take(jnp.asarray(p)))
        closed, integral, pick, race = _both_ways(own, law)
        rates = [float(np.minimum(own, beta).sum()) for beta in (closed.pick, pick)]
        assert rates[0] >= rates[1] - 1e-6
        assert rates[0] == pytest.approx(rates[1], abs=1e-5)
        assert float(closed.excess) == pytest.approx(float(race.excess), abs=1e-9)
        # Its pick law is the integral's, for its weights.
        np.testing.assert_allclose(closed.pick, integral, atol=1e-6)


def test_closed_forms_in_float32_over_a_large_vocabulary():
    rng = np.random.default_rng(0)
    logits = -1.2 * np.log(np.arange(1, 20_001)) + rng.normal(size=(2, 20_000))
    p, q = np.exp(logits)
    q = np.where(q >= np.sort(q)[-500], q, 0)
    p, q = (np.asarray(x / x.sum(), np.float32) for x in (p, q))

    @jax.jit
    def solve(p, q):
        law = gr.TopPlusSample(q, 4, max_support=500)
        return law, law.spread(law.proposal), gr.solve_transport(p, law)

    law, last, plan = solve(p, q)
    assert int(plan.iterations) == 0 and float(plan.gap) <= 1e-6
    # p on the fixed drafts, and single-draft sampling of the last one (Hu et al.).
    p, top = np.asarray(p, float), np.asarray(law.top)
    last = np.asarray(last, float)
    best = p[top].sum() + np.minimum(np.delete(p, top), np.delete(last, top)).sum()
    assert float(plan.acceptance_rate) == pytest.approx(best, abs=2e-6)


def test_one_draft_of_any_law_is_single_draft_sampling():
    """sum min(p, q), with no iteration."""
    p, q = next(distributions(6, 5, 1))

    @jax.jit
    def plans(p, q):
        laws = gr.WithoutReplacement(q, 1), gr.Independent(q[None])
        return [gr.solve_transport(p, law) for law in laws]

    for plan in plans(p, q):
        assert int(plan.iterations) == 0 and bool(plan.converged)
        best = pytest.approx(np.minimum(p, q).sum(), abs=1e-6)
        assert float(plan.acceptance_rate) == best
        assert float(plan.upper_bound) == best
