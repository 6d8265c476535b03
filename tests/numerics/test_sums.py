"""Sums that keep small terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax.numerics.sums import blockwise_sum, mass_beyond


def test_blockwise_sum_keeps_small_terms():
    values = np.full(60_000, 1e-6, np.float32)
    values[0] = 1
    exact = values.astype(np.float64).sum()
    assert abs(values.cumsum(dtype=np.float32)[-1] - exact) > 1e-4  # a running sum
    for total in (blockwise_sum(jnp.asarray(values)), jax.jit(blockwise_sum)(values)):
        assert float(total) == pytest.approx(exact, abs=1e-6)
    gradient = jax.grad(lambda x: blockwise_sum(x * x))(jnp.arange(200.0))
    np.testing.assert_allclose(gradient, 2 * np.arange(200.0))


def test_mass_beyond_prefixes():
    beyond = mass_beyond(jnp.array([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(beyond, [1, 0.5, 0.2, 0], atol=1e-7)
