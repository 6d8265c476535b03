import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax.numerics.categorical import sample
from globalres_jax.transforms import normalized_residual, probabilities

LOGITS = np.log(jnp.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]))


def test_temperature_is_a_power():
    probs = probabilities(LOGITS, temperature=0.5)
    squares = np.array([0.16, 0.09, 0.04, 0.01])
    np.testing.assert_allclose(probs[0], squares / squares.sum(), atol=1e-6)


def test_zero_temperature_is_the_first_best_token():
    probs = probabilities(jnp.array([[1.0, 3.0, 3.0]]), temperature=0)
    np.testing.assert_array_equal(probs, [[0, 1, 0]])


def test_filters():
    top_k = probabilities(LOGITS, top_k=2)
    np.testing.assert_allclose(top_k[0], [4 / 7, 3 / 7, 0, 0], atol=1e-6)
    assert int((top_k[1] > 0).sum()) == 2  # ties do not enlarge the support
    np.testing.assert_allclose(
        probabilities(LOGITS, top_p=0.65)[0], [4 / 7, 3 / 7, 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        probabilities(LOGITS, min_p=0.45)[0], np.array([4, 3, 2, 0]) / 9, atol=1e-6
    )
    # In this order: top-p sees what temperature and top-k left.
    both = probabilities(LOGITS, temperature=1.0, top_k=3, top_p=0.75)
    np.testing.assert_allclose(both[0], [4 / 7, 3 / 7, 0, 0], atol=1e-6)


def test_bfloat16_becomes_float32():
    probs = probabilities(LOGITS.astype(jnp.bfloat16), top_k=3)
    assert probs.dtype == jnp.float32
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)


def test_empty_residual_falls_back_on_the_target():
    p = jnp.array([0.25, 0.75])
    np.testing.assert_array_equal(normalized_residual(jnp.zeros(2), p), p)
    np.testing.assert_allclose(normalized_residual(jnp.array([0.1, 0.3]), p), p)


def test_tokens_without_mass_are_never_sampled():
    keys = jax.random.split(jax.random.key(1), 1000)
    tokens = jax.vmap(lambda k: sample(k, jnp.array([0.0, 1e-3, 0.0])))(keys)
    assert set(np.asarray(tokens).tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: must be 0 or more"),
        ({"temperature": float("nan")}, "temperature: must be 0 or more"),
        ({"top_k": 0}, "top_k: must be at least 1"),
        ({"top_p": 0.0}, r"top_p: must lie in \(0, 1\]"),
        ({"min_p": 1.5}, r"min_p: must lie in \[0, 1\]"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        probabilities(LOGITS, **options)
