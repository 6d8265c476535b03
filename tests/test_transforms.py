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


def by_sorting(logits, temperature, top_k, top_p, min_p):
    """One row, in float64."""
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, kind="stable")
    if temperature == 0:
        return np.eye(len(logits))[order[0]]
    weights = np.exp((logits - logits.max()) / temperature)
    weights[order[top_k:]] = 0
    before = np.append(0, np.cumsum(weights[order])[:-1])
    weights[order[before >= top_p * weights.sum()]] = 0
    weights[weights < min_p] = 0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "vocab_size", [50, pytest.param(5000, marks=pytest.mark.sweep)]
)
def test_each_row_has_its_own_options_and_they_are_data(vocab_size):
    """Of 5,000 tokens a CPU sees only the likeliest."""
    rng = np.random.default_rng(0)
    logits = np.round(3 * rng.normal(size=(2, 4, vocab_size)), 1).astype(np.float32)
    temperature = np.array([[1, 0, 0.7, 3], [1, 1, 0, 0.3]], np.float32)
    top_k = np.array([[1, 5, 31, 50], [17, 50, 50, 2]])
    top_p = np.array([[0.5, 0.9, 0.8, 0.95], [0.02, 1, 0.3, 0.999]], np.float32)
    min_p = np.array([[0, 0.1, 0.5, 0.01], [0.3, 0, 1, 0.2]], np.float32)
    filtered = jax.jit(probabilities, static_argnames="max_top_k")
    alone = (0, 0, 1) if vocab_size == 50 else (1, 0, 0)
    for k, p, m in [(1, 1, 1), (0, 1, 0), alone]:
        probs = filtered(
            logits,
            temperature,
            top_k if k else None,
            top_p if p else None,
            min_p if m else None,
            max_top_k=50,
        )
        for row in np.ndindex(2, 4):
            expected = by_sorting(
                logits[row],
                temperature[row],
                top_k[row] if k else vocab_size,
                top_p[row] if p else 2.0,
                min_p[row] if m else 0.0,
            )
            np.testing.assert_array_equal(probs[row] > 0, expected > 0)
            np.testing.assert_allclose(probs[row], expected, rtol=2e-5)


@pytest.mark.parametrize("top_k", [pytest.param(None, marks=pytest.mark.sweep), 20])
def test_extreme_temperatures_and_logits(top_k):
    rng = np.random.default_rng(0)
    row = rng.normal(size=2000).astype(np.float32)
    best = np.eye(2000)[row.argmax()]
    traced = jax.jit(lambda x, t: probabilities(x, t, top_k, 0.95, 0.01))
    for temperature in (1e-45, 1e-38, 1e-30, 1e-6):
        np.testing.assert_array_equal(traced(row, temperature), best)
        cold = probabilities(row, temperature, top_k)
        np.testing.assert_array_equal(cold, best)
    row[7] = np.inf
    for temperature in (0.0, 1e-38, 1.0, 1e6):
        probs = traced(row, temperature)
        np.testing.assert_array_equal(probs, np.arange(2000) == 7)
    np.testing.assert_array_equal(probabilities(row, top_k=top_k), np.arange(2000) == 7)
    huge = np.full(2000, -3e38, np.float32)
    huge[3] = 3e38
    np.testing.assert_array_equal(traced(huge, 1.0), np.arange(2000) == 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [None, 20])
def test_rows_that_are_no_distributions_sum_to_nan(temperature, top_k):
    batch = np.random.default_rng(0).normal(size=(4, 2000)).astype(np.float32)
    batch[0, 5], batch[1, 1500] = np.nan, -np.nan
    batch[2] = np.nan
    probs = probabilities(batch, np.full(4, temperature), top_k, 0.9)
    assert np.isnan(probs.sum(-1)).tolist() == [True, True, True, False]
    assert np.isnan(probabilities(np.full(2000, -np.inf), 1.0, top_k).sum())


def test_float64(float64):
    logits = np.random.default_rng(0).normal(size=(2, 3000)) * 4
    for top_k in (10, 2999):
        probs = probabilities(logits, 0.5, top_k, 0.9, 1e-4)
        assert probs.dtype == float64
        for row, found in zip(logits, probs, strict=True):
            expected = by_sorting(row, 0.5, top_k, 0.9, 1e-4)
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("vocab_size", "options"),
    [
        (30, {}),
        (30, {"top_p": 0.9}),
        (1500, {"top_k": 10}),
        (1500, {"top_p": 0.9}),
        (1500, {"min_p": 0.1}),
        *(
            pytest.param(size, options, marks=pytest.mark.sweep)
            for size, options in (
                (1500, {}),
                (30, {"top_k": 10}),
                (30, {"min_p": 0.1}),
            )
        ),
    ],
)
def test_the_derivative_is_that_of_the_kept_tokens(float64, vocab_size, options):
    rng = np.random.default_rng(3)
    logits, weights = rng.normal(size=(2, 2, vocab_size))

    def filtered(x):
        probs = probabilities(x, 0.7, **options)
        return jnp.sum(weights * probs), probs

    found, probs = jax.jit(jax.grad(filtered, has_aux=True))(logits)
    kept = np.asarray(probs) > 0
    assert 0 < kept.sum() < kept.size or not options
    softmax = np.where(kept, np.exp(logits / 0.7), 0)
    softmax /= softmax.sum(1, keepdims=True)
    mean = np.sum(weights * softmax, axis=1, keepdims=True)
    np.testing.assert_allclose(found, softmax * (weights - mean) / 0.7, atol=1e-12)


@pytest.mark.sweep
def test_vmap_is_a_batch():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1000)), jnp.float32)
    for top_k, top_p in ((10, 0.5), (None, 0.5)):
        one = lambda row, k=top_k, p=top_p: probabilities(row, 0.5, k, p)  # noqa: E731
        together, apart = jax.jit(lambda x, f=one: (f(x), jax.vmap(f)(x)))(logits)
        np.testing.assert_array_equal(apart, together)


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
    probs = np.array([0.0, 1e-3, 0.0], np.float32)
    tokens = jax.jit(jax.vmap(lambda key: sample(key, jnp.asarray(probs))))(keys)
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
