"""The paper's method, held to the paper's own bounds."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions

import globalres_jax as gr
from globalres_jax.verifiers import TruncatedGlobalResolution
from globalres_jax.verifiers.truncated_global_resolution import (
    _multisets,
    max_tokens,
    outer_residuals,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("tau", "vocab_size", "n"),
    [
        (1e-2, 4, 2),
        (1e-3, 5, 3),
        pytest.param(1e-4, 4, 2, marks=pytest.mark.sweep),
    ],
)
def test_bounds_of_the_paper(tau, vocab_size, n, float64):
    """L1 deviation at most 15 tau, acceptance lost at most 10 tau."""
    rule, solved = TruncatedGlobalResolution(tau=tau), 0
    pairs = [*distributions(vocab_size, 0, 6), *adversarial(vocab_size).values()]
    for p, q in pairs:
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), n)
        output = gr.testing.output_law(rule, p, law)
        assert float(jnp.abs(output - p).sum()) <= 15 * tau, (p, q, n)
        plan = rule.prepare(p, law)
        if bool(plan.converged):
            solved += 1
            rate = float(gr.testing.acceptance_rate(rule, p, law))
            best = float(gr.optimal_acceptance_rate(p, law))
            assert best - 10 * tau <= rate <= best + 15 * tau, (p, q, n)
            assert float(plan.acceptance_rate) == pytest.approx(rate, abs=10 * tau)
    assert solved >= 15


def test_outer_residuals_are_feasible_and_tight(float64):
    """They sum to 1 - Q(H*), and no set of tokens wants more than its tuples hold."""
    for p, q in distributions(6, 5, 8):
        n = 3
        order = np.argsort(-q / np.maximum(p, 1e-300))
        p, q = p[order], q[order]
        psi = np.concatenate([[0], np.cumsum(p) - np.cumsum(q) ** n])
        best = psi.argmin()
        wanted = (p - np.asarray(outer_residuals(jnp.asarray(psi))))[best:]
        assert np.all(wanted >= -1e-12) and np.all(wanted <= p[best:] + 1e-12)
        inside = q[:best].sum()
        assert wanted.sum() == pytest.approx(1 - inside**n)
        for chosen in np.ndindex(*[2] * len(wanted)):
            chosen = np.array(chosen, bool)
            # Tuples that reach outside H* and only to the chosen tokens accept them.
            forced = (inside + q[best:][chosen].sum()) ** n - inside**n
            assert wanted[chosen].sum() >= forced - 1e-9


def test_multisets_count_orders():
    tuples, orders = _multisets(4, 3)
    assert len(tuples) == 20 and orders.sum() == 4**3
    assert orders[(tuples == [0, 0, 1]).all(1)] == 3
    assert max_tokens(2, 6) == 2 and max_tokens(4, 20_000) == 23


def test_failure_is_said_and_harmless(float64):
    """Too many tokens for the cap: target sampling, exactly lossless."""
    p, q = (jnp.asarray(x) for x in next(distributions(6, 1, 1)))
    law = gr.IID(q, 3)
    rule = TruncatedGlobalResolution(tau=1e-6, max_tuples=4)
    assert not bool(rule.prepare(p, law).converged)
    np.testing.assert_allclose(gr.testing.output_law(rule, p, law), p, atol=1e-12)
    np.testing.assert_allclose(
        rule.acceptance_rate(p, law),
        gr.testing.acceptance_rate(rule, p, law),
        atol=1e-12,
    )


def test_the_race_is_at_least_as_good(float64):
    for p, q in distributions(5, 12, 5):
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), 3)
        rule = TruncatedGlobalResolution(tau=1e-3)
        race = gr.solve_transport(p, law)
        published = gr.testing.acceptance_rate(rule, p, law)
        assert float(race.acceptance_rate) >= float(published) - 15e-3
        assert float(race.gap) <= 1e-5


def test_a_number_of_drafts_that_is_data_is_refused():
    q = jnp.array([0.5, 0.5])
    law = gr.IID(q, jnp.array(2))
    with pytest.raises(ValueError, match="num_drafts: TruncatedGlobalResolution enum"):
        TruncatedGlobalResolution().decide(q, law, jnp.array([0, 1]))
