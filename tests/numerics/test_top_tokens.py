"""The top tokens by counting, against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax.numerics.top_tokens import top_tokens


@pytest.mark.parametrize(
    ("vocab_size", "size"),
    [(5, 1), (5, 5), (33, 32), (100_000, 9000)],
)
def test_all_mass_is_found_and_no_token_twice(vocab_size, size):
    rng = np.random.default_rng(vocab_size + size)
    find = jax.jit(top_tokens, static_argnums=1)
    for held in {0, 1, size // 2, size - 1, size, min(size + 1, vocab_size)}:
        mass = np.zeros(vocab_size, np.float32)
        mass[rng.choice(vocab_size, held, replace=False)] = rng.uniform(0.1, 1, held)
        tokens = np.asarray(find(mass, size))
        assert len(set(tokens)) == size
        assert tokens.min() >= 0 and tokens.max() < vocab_size
        expected = np.sort(mass)[::-1][:size]
        np.testing.assert_array_equal(np.sort(mass[tokens])[::-1], expected)


@pytest.mark.parametrize("vocab_size", [70, 1500])
def test_a_batch_is_its_rows_and_nothing_is_differentiated(vocab_size):
    rng = np.random.default_rng(0)
    held = rng.random((4, vocab_size)) < [[0.01], [0.1], [0.6], [1]]
    mass = held * rng.uniform(0.1, 1, (4, vocab_size))
    mass = np.asarray(mass, np.float32)
    find = jax.jit(lambda row: top_tokens(row, 20))
    together = jax.jit(jax.vmap(find))(mass)
    apart = np.stack([find(row) for row in mass])
    np.testing.assert_array_equal(together, apart)
    gradient = jax.grad(lambda row: jnp.sum(row[find(row)] ** 2))(mass[0])
    wanted = np.zeros(vocab_size)
    chosen = np.asarray(together[0])
    wanted[chosen] = 2 * mass[0, chosen]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)
