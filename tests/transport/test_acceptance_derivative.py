"""The derivative of the optimal acceptance rate, by the envelope theorem."""

import functools

import derivative_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivative_cases import V

import globalres_jax as gr

LAWS = {
    "one": lambda q: gr.IID(q, 1),
    "iid": lambda q: gr.IID(q, 3),
    "number as data": lambda q: gr.IID(q, jnp.asarray(2)),
    "without replacement": lambda q: gr.WithoutReplacement(q, 2),
    "top plus sample": lambda q: gr.TopPlusSample(q, 2),
    "deterministic": lambda q: gr.Deterministic(jnp.array([2, 0]), V),
}


def rates(*laws):
    return lambda p, q: jnp.stack(
        [gr.optimal_acceptance_rate(p, law(q)) for law in laws]
    )


def test_of_sorted_laws(float64):
    derivative_cases.check(rates(*LAWS.values()))


@pytest.mark.sweep
def test_of_the_others(float64):
    """Where the race is solved, and where there are clocks."""
    both = lambda q: gr.Independent(jnp.stack([q, 0.5 * (q + q[::-1])]))  # noqa: E731
    derivative_cases.check(rates(both, lambda q: gr.WithoutReplacement(q, 3)))


def test_the_formula(float64):
    """1 on H in p, and -n q(H)^(n-1) on H in q."""
    p, q = np.asarray(jax.nn.softmax(jnp.asarray(derivative_cases.POINT)))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(p, q):
        return gr.optimal_acceptance_rate(p, gr.IID(q, 2))

    slope_p, slope_q = slopes(p, q)
    inside = np.asarray(slope_p) > 0.5
    np.testing.assert_allclose(slope_p, inside, atol=1e-12)
    # The law divides by the sum of q, which takes out the part along q.
    raw = -2 * q[inside].sum() * inside
    np.testing.assert_allclose(slope_q, raw - raw @ q, atol=1e-12)
