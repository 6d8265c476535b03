"""The k largest and their places, against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax.numerics.largest as module
from globalres_jax.numerics.largest import is_quick, largest
from globalres_jax.numerics.rows import on_platform


def rows(vocab_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=vocab_size)
    zeros = np.where(rng.random(vocab_size) < 0.5, 0.0, -0.0)
    masked = np.where(rng.random(vocab_size) < 0.01, normal, -np.inf)
    return {
        "continuous": normal,
        "ties": np.round(normal, 1),
        "few values": rng.integers(0, 3, vocab_size),
        "all equal": np.full(vocab_size, -2.5),
        "zeros of both signs": zeros,
        "one-hot": np.arange(vocab_size) == vocab_size // 2,
        "masked": masked,
        "nothing": np.full(vocab_size, -np.inf),
        "infinite": np.where(np.arange(vocab_size) % 7 == 3, np.inf, normal),
        "ascending": np.arange(vocab_size) / 8,
        "clustered": np.where(np.arange(vocab_size) < 400, 9 + normal, normal),
        "subnormal": np.where(normal > 1, 1e-40, np.where(normal > 0, 1e-30, 0)),
    }


def expected(values: np.ndarray, k: int) -> np.ndarray:
    tiny = np.finfo(values.dtype).tiny
    values = np.where(np.abs(values) < tiny, 0, values).astype(np.float64)
    return np.argsort(-values, kind="stable")[:k]


def wrong_rows(vocab_size: int, k: int, dtype=np.float32) -> list[str]:
    find = jax.jit(largest, static_argnums=1)
    wrong = []
    for name, row in rows(vocab_size).items():
        row = row.astype(dtype)
        values, places = find(jnp.asarray(row), k)
        assert values.dtype == dtype and values.shape == places.shape == (k,)
        np.testing.assert_array_equal(values, row[np.asarray(places)])
        if not np.array_equal(places, expected(row, k)):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize(
    ("vocab_size", "k"),
    [(1, 1), (5, 5), (100, 1), (257, 256), (4801, 50), (9999, 200), (49_152, 256)],
)
def test_the_largest_in_order_and_ties_by_place(vocab_size, k):
    assert wrong_rows(vocab_size, k) == []


def test_float64(float64):
    assert is_quick(5000, 30)
    assert wrong_rows(5000, 30, float64) == []


def test_nan_is_largest():
    row = np.random.default_rng(0).normal(size=4800).astype(np.float32)
    row[[7, 4000]] = np.nan, -np.nan
    row[3] = np.inf
    found = jax.jit(largest, static_argnums=1)(row, 4)[1]
    assert found.tolist()[:3] == [7, 4000, 3]


def test_mutant_bound_is_caught(monkeypatch):
    """A bound above the k-th largest maximum loses tokens."""

    def too_high(values, k, size):
        return jax.lax.top_k(values, k)[0][-2]

    assert is_quick(4802, 50)
    monkeypatch.setattr(module, "_lower_bound", too_high)
    with on_platform("cpu"):  # others sort
        assert "continuous" in wrong_rows(4802, 50)


def test_mutant_order_of_ties_is_caught(monkeypatch):
    honest = module.members

    def backwards(words, others, size):
        return honest(words, others, size)[::-1]

    monkeypatch.setattr(module, "members", backwards)
    with on_platform("cpu"):
        assert "ties" in wrong_rows(4803, 50)


def test_a_batch_is_its_rows_and_values_are_differentiable():
    batch = np.random.default_rng(1).normal(size=(3, 4800)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda row: largest(row, 20)))(batch)
    together = jax.tree.map(np.asarray, found)
    alone = jax.jit(largest, static_argnums=1)
    for i, row in enumerate(batch):
        apart = alone(row, 20)
        np.testing.assert_array_equal(together[0][i], apart[0])
        np.testing.assert_array_equal(together[1][i], apart[1])
    weights = np.arange(20, dtype=np.float32)
    slope = jax.grad(lambda row: jnp.sum(weights * largest(row, 20)[0]))
    gradient = jax.jit(slope)(batch[0])
    wanted = np.zeros(4800)
    wanted[np.asarray(together[1][0])] = weights
    np.testing.assert_array_equal(gradient, wanted)
