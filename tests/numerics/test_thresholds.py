"""The fewest likeliest tokens that hold a share, against a stable sort in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax.numerics.thresholds as module
from globalres_jax.numerics.thresholds import reaching

SHARES = (1e-30, 0.1, 0.5, 0.75, 0.95, 0.999)
EXACT = ("whole numbers", "all equal", "one-hot", "half zero")


def rows(vocab_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(vocab_size)
    normal = rng.normal(size=vocab_size)
    one_hot = (np.arange(vocab_size) == vocab_size // 3) * 1.0
    return {
        "continuous": np.exp(3 * normal),
        "flat": np.exp(1e-3 * normal),
        "ties": np.exp(np.round(normal)),
        "whole numbers": rng.integers(0, 16, vocab_size) + one_hot,
        "all equal": np.full(vocab_size, 0.125),
        "one-hot": one_hot,
        "one-hot and dust": one_hot + 1e-30,
        "subnormal": one_hot + 1e-40 * (normal > 0),
        "half zero": np.where(normal > 0, 2.0 ** np.round(4 * normal), 0) + one_hot,
        "descending": 1 / (1.0 + np.arange(vocab_size)),
        "few of many sizes": one_hot + (np.arange(vocab_size) < 4) * 1e-6,
    }


def is_right(mass: np.ndarray, share, kept: np.ndarray, error: float) -> bool:
    """Whether a sort in float64 keeps these, at a share at most `error` off."""
    mass = np.where(mass < np.finfo(mass.dtype).tiny, 0, mass).astype(np.float64)
    order = np.argsort(-mass, kind="stable")
    before = np.append(0, np.cumsum(mass[order])[:-1])
    count = kept.sum()
    fewest, most = (
        np.sum(before < np.float64(share) * x * mass.sum())
        for x in (1 - error, 1 + error)
    )
    return kept[order[:count]].all() and fewest <= count <= most


def wrong_rows(vocab_size: int, dtype=np.float32) -> set[str]:
    find = jax.jit(lambda mass, share: reaching(mass, share).keeps(mass))
    wrong = set()
    for name, row in rows(vocab_size).items():
        row = row.astype(dtype)
        # Where sums are exact nothing is rounded but the share.
        error = 0 if name in EXACT else np.finfo(dtype).eps
        for share in map(dtype, SHARES):
            kept = np.asarray(find(jnp.asarray(row), share))
            if not is_right(row, share, kept, error):
                wrong.add(name)
    return wrong


@pytest.mark.parametrize(
    "vocab_size",
    [
        *(1, 33, 2049),
        *(
            pytest.param(size, marks=pytest.mark.sweep)
            for size in (4, 2048, 49_152, 131_073)
        ),
    ],
)
def test_the_fewest_that_hold_the_share(vocab_size):
    assert wrong_rows(vocab_size) == set()


def test_float64(float64):
    assert wrong_rows(3000, float64) == set()


def test_a_share_of_one_keeps_all_that_have_mass_but_what_rounding_hides():
    mass = np.random.default_rng(0).integers(0, 5, 5000).astype(np.float32)
    kept = jax.jit(lambda x: reaching(x, 1.0).keeps(x))(mass)
    np.testing.assert_array_equal(kept, mass > 0)


def test_nothing_and_nan_end():
    find = jax.jit(lambda mass: reaching(mass, 0.5))
    for value in (0.0, np.nan):
        threshold = find(np.full(3000, value, np.float32))
        assert threshold.value.shape == ()


def test_mutant_all_ties_is_caught(monkeypatch):
    last = lambda words, rank: jnp.int32(10**6) + 0 * rank  # noqa: E731
    monkeypatch.setattr(module, "member", last)
    assert {"ties", "all equal"} <= wrong_rows(2050)


def test_mutant_running_sum_is_caught(monkeypatch):
    def running(groups, threshold):
        values = jnp.where(groups >= threshold, groups, 0).reshape(-1)
        return jax.lax.scan(lambda total, x: (total + x, None), 0.0, values)[0]

    monkeypatch.setattr(module, "_mass_from", running)
    assert {"continuous", "descending", "all equal"} <= wrong_rows(30_000)


def test_a_batch_is_its_rows_and_nothing_is_differentiated():
    batch = np.exp(np.random.default_rng(1).normal(size=(3, 500)) * 2)
    batch, shares = batch.astype(np.float32), np.float32([0.3, 0.6, 0.9])
    found = jax.jit(jax.vmap(reaching))(batch, shares)
    together = jax.tree.map(np.asarray, found)
    find = jax.jit(reaching)
    for i in range(3):
        apart = find(batch[i], shares[i])
        assert together.value[i] == apart.value and together.last[i] == apart.last
    gradient = jax.jit(jax.grad(lambda row: reaching(row, 0.5).value))(batch[0])
    np.testing.assert_array_equal(gradient, 0)
