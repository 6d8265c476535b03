"""The paper's method, held to the paper's own bounds."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_cases
from conftest import distributions

import globalres_jax as gr
from globalres_jax.base import NO_TOKEN, Array
from globalres_jax.verifiers import TruncatedGlobalResolution
from globalres_jax.verifiers.truncated_global_resolution import TruncatedPlan
from globalres_jax.verifiers.truncated_systems import (
    max_tokens,
    multisets,
    outer_residuals,
)

MOST = 3


class Held(NamedTuple):
    """What is held to the bounds, for all cases."""

    plan: TruncatedPlan
    output: Array
    rate: Array
    best: Array


@pytest.mark.parametrize(
    ("tau", "most"),
    [
        (1e-3, 2),
        *(pytest.param(t, MOST, marks=pytest.mark.sweep) for t in (1e-3, 1e-4)),
    ],
)
def test_bounds_of_the_paper_for_numbers_of_drafts_that_are_data(tau, most, float64):
    """L1 deviation at most 15 tau, acceptance lost at most 10 tau; gaps among slots."""
    rule = TruncatedGlobalResolution(tau=tau)
    p, q = rule_cases.pairs()
    counts = 1 + np.arange(len(p)) % most
    laws = jax.vmap(lambda q, n: gr.IID(q, n, max_drafts=most))(q, counts)

    def each(case):
        p, law = case
        plan = rule.prepare(p, law)
        outcomes = gr.testing.enumerate_decisions(
            lambda drafts: rule.resolve(plan, p, law, drafts), law
        )
        best = gr.optimal_acceptance_rate(p, law)
        return Held(plan, outcomes.output_law, outcomes.acceptance_rate, best)

    found = jax.jit(lambda cases: jax.lax.map(each, cases))((jnp.asarray(p), laws))
    assert np.all(np.abs(found.output - p).sum(1) <= 15 * tau)
    solved = np.asarray(found.plan.converged)
    assert solved.mean() > 0.8
    rate, best = np.asarray(found.rate)[solved], np.asarray(found.best)[solved]
    assert np.all((best - 10 * tau <= rate) & (rate <= best + 15 * tau))
    told = found.plan.acceptance_rate[solved]
    np.testing.assert_allclose(told, rate, atol=10 * tau)
    bound = found.plan.upper_bound[solved]
    np.testing.assert_allclose(bound, best, atol=1e-9)


@pytest.mark.sweep
def test_a_python_number_of_drafts_takes_another_way_to_the_same_plan(float64):
    rule = TruncatedGlobalResolution(tau=1e-3)
    p, q = (jnp.asarray(x) for x in next(distributions(5, seed=4, count=1)))
    prepare = jax.jit(rule.prepare)
    plan = prepare(p, gr.IID(q, 2))
    as_data = prepare(p, gr.IID(q, jnp.asarray(2), max_drafts=MOST))
    chex.assert_trees_all_close(plan, as_data, atol=1e-12)


def test_the_published_method_passes_over_unused_slots(float64):
    """A plan as for n = 2; one that failed looks at the slots in its own way."""
    rule = TruncatedGlobalResolution()
    p, q = (jnp.asarray(x) for x in next(distributions(5, seed=4, count=1)))
    law, drafts = gr.IID(q, 2), jnp.array([4, 0])
    loose = jnp.array([NO_TOKEN, 4, NO_TOKEN, 0])
    resolve = jax.jit(rule.resolve)
    for converged in (True, False):
        plan = TruncatedPlan(
            outside=jnp.arange(5) > 3,
            kept=jnp.ones(5, bool),
            log_weights=jnp.log(p),
            token_residual=q,
            acceptance_rate=jnp.array(0.5),
            upper_bound=jnp.array(0.5),
            converged=jnp.array(converged),
            iterations=jnp.array(3),
        )
        tight = resolve(plan, p, law, drafts)
        gaps = resolve(plan, p, law, loose)
        np.testing.assert_allclose(gaps.accept[1::2], tight.accept, atol=1e-12)
        assert np.all(gaps.accept[::2] == 0)
        np.testing.assert_allclose(gaps.residual, tight.residual, atol=1e-12)


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
    tuples, orders = multisets(4, 3)
    assert len(tuples) == 20 and orders.sum() == 4**3
    assert orders[(tuples == [0, 0, 1]).all(1)] == 3
    assert max_tokens(2, 6) == 2 and max_tokens(4, 20_000) == 23


def test_failure_of_the_published_method_is_said_and_harmless(float64):
    """Too many tokens for the cap: target sampling, exactly lossless."""
    p, q = (jnp.asarray(x) for x in next(distributions(6, 1, 1)))
    law = gr.IID(q, 3)
    rule = TruncatedGlobalResolution(tau=1e-6, max_tuples=4)

    @jax.jit
    def all_of(p, law):
        plan = rule.prepare(p, law)
        outcomes = gr.testing.enumerate_decisions(
            lambda drafts: rule.resolve(plan, p, law, drafts), law
        )
        return plan, outcomes, rule.acceptance_rate(p, law)

    plan, outcomes, told = all_of(p, law)
    assert not bool(plan.converged)
    np.testing.assert_allclose(outcomes.output_law, p, atol=1e-12)
    np.testing.assert_allclose(told, outcomes.acceptance_rate, atol=1e-12)
