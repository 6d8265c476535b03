"""The table of weights: one draft, where everything is known, and many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND, quadrature
from globalres_jax.transport.weight_curve import (
    POINTS,
    WeightCurve,
    invert,
    read,
    tabulate,
)

_tabulate = jax.jit(tabulate, static_argnums=1)
_invert = jax.jit(invert)


def one_draft():
    """F(a) = w / (1 + w)."""
    return _tabulate(jnp.asarray(quadrature(jnp.float32)[1]), "fine")


def test_the_worked_example():
    curve = one_draft()
    weights = jnp.exp(_invert(curve, jnp.log(jnp.array([1 / 3, 1 / 2]))))
    np.testing.assert_allclose(weights, [0.5, 1.0], rtol=1e-5)
    shares = jnp.exp(read(curve.height, jnp.log(jnp.array([0.5, 1.0]))))
    np.testing.assert_allclose(shares, [1 / 3, 1 / 2], rtol=2e-3)  # linear in between


def test_inversion_is_exact_between_the_points():
    """a = log(F / (1 - F)), at 1,000 shares on both sides of every point."""
    curve = one_draft()
    a = np.linspace(-22, 8, 1000)
    wanted = -np.log1p(np.exp(-a))
    found = np.asarray(_invert(curve, jnp.asarray(wanted, jnp.float32)))
    # Near F = 1 the last digit of a float32 share moves a by eps * e^a.
    assert np.all(np.abs(found - a) <= 2e-5 + 4e-7 * np.exp(np.maximum(a, 0)))
    assert np.all(np.diff(found) >= 0)


def test_what_no_weight_gives_takes_the_bound():
    curve = one_draft()
    found = _invert(curve, jnp.array([0.1, 3.0, -40.0]))
    np.testing.assert_allclose(found, [LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND, -40.0])


def test_many_drafts_by_an_integral_of_their_own():
    """Scales of n = 8 drafts with phi = e^-t, so F(a) = 8 w / (8 + w)."""
    nodes, measure = quadrature(jnp.float32)
    curve = _tabulate(jnp.asarray(8 * measure * np.exp(-7 * nodes)), "fine")
    w = np.exp(POINTS)
    np.testing.assert_allclose(curve.height, np.log(8 * w / (8 + w)), atol=2e-6)
    # d log F / da = 8 / (8 + w); where F is flat its digits are noise.
    np.testing.assert_allclose(curve.slope, 8 / (8 + w), atol=1e-5)


def test_flat_and_noisy_tables_stay_monotone():
    height = np.minimum(np.linspace(-20, 24, 256), -3).astype(np.float32)
    height += np.random.default_rng(0).normal(size=256).astype(np.float32) * 1e-6
    slope = np.where(height < -3.01, 1, 0).astype(np.float32)
    wanted = np.linspace(-25, 0, 777).astype(np.float32)
    curve = WeightCurve(jnp.asarray(height), jnp.asarray(slope))
    found = np.asarray(_invert(curve, jnp.asarray(wanted)))
    assert np.isfinite(found).all() and np.all(np.diff(found) >= -1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_table_widens_nothing(dtype, both_precisions):
    scale, wanted = quadrature(dtype)[1], jnp.zeros(3, dtype)
    curve = jax.eval_shape(lambda scale: tabulate(scale, "fine"), scale)
    found = jax.eval_shape(invert, curve, wanted)
    assert found.dtype == jax.eval_shape(read, curve.height, found).dtype == dtype
