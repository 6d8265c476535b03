"""Powers near 1, against float64."""

import jax.numpy as jnp
import numpy as np

from globalres_jax.numerics.powers import one_minus_power, power_of_rest


def test_powers_of_what_is_left_are_exact_to_rounding():
    lacking = np.array([0, 1e-9, 1e-6, 1e-3, 0.3, 1], np.float32)
    exact = lacking.astype(np.float64)
    for n in (1, 2, 64):
        left = one_minus_power(jnp.asarray(lacking), n)
        expected = -np.expm1(n * np.log1p(-np.minimum(exact, 1 - 1e-12)))
        np.testing.assert_allclose(left, expected, rtol=1e-6)
        power = power_of_rest(jnp.asarray(lacking), n)
        np.testing.assert_allclose(power, (1 - exact) ** n, rtol=1e-6, atol=2e-7)


def test_nothing_to_the_power_of_nothing_is_one():
    assert float(power_of_rest(jnp.ones(()), 0)) == 1
