"""Drawing by inversion: the right law, at every level of the tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from globalres_jax.base import NO_TOKEN
from globalres_jax.numerics.categorical import (
    UNIFORMS,
    draw,
    draw_without_replacement,
    sample,
    uniforms,
)

DRAWS = 40_000


@pytest.mark.parametrize("vocab_size", [1, 256, 257, 4097])
def test_frequencies_are_the_probabilities(vocab_size):
    rng = np.random.default_rng(vocab_size)
    probs = rng.dirichlet(np.full(vocab_size, 0.5))
    probs[rng.random(vocab_size) < 0.2] = 0
    probs[-1] += 0.01
    keys = jax.random.split(jax.random.key(vocab_size), DRAWS)
    drawn = jax.jit(jax.vmap(sample, (0, None)))(keys, jnp.asarray(probs, jnp.float32))
    counts = np.bincount(np.asarray(drawn), minlength=vocab_size)
    assert len(counts) == vocab_size and not counts[probs == 0].any()
    wanted = DRAWS * probs / probs.sum()
    # Together what is too rare for the chi-square law.
    rare = wanted < 20
    found = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    keep = wanted > 0
    if keep.sum() > 1:
        assert chisquare(found[keep], wanted[keep]).pvalue > 1e-5


def test_mutant_one_number_for_all_levels_is_caught():
    """A second level that reuses the first one's number is not uniform in its group."""
    probs = jnp.ones(65536)
    keys = jax.random.split(jax.random.key(0), 20_000)
    honest = np.asarray(jax.jit(jax.vmap(sample, (0, None)))(keys, probs)) % 257
    uniform = np.random.default_rng(1).random(20_000)
    group = np.floor(256 * uniform)
    mutant = (group * 256 + np.floor(256 * uniform)).astype(int) % 257
    assert chisquare(np.bincount(honest, minlength=257)[1:256]).pvalue > 1e-5
    assert chisquare(np.bincount(mutant, minlength=257)[:256]).pvalue < 1e-12


def test_light_tails_keep_their_mass():
    """Half the mass in a hundred thousand tokens of 5e-6 each."""
    probs = jnp.full(100_001, 5e-6).at[7].set(0.5)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(sample, (0, None)))(keys, probs))
    share = (drawn != 7).mean()
    assert abs(share - 0.5) < 5 * np.sqrt(0.25 / 20_000)
    halves = (drawn[drawn != 7] > 50_000).mean()
    assert abs(halves - 0.5) < 5 * np.sqrt(0.25 / 10_000)


def test_a_first_token_below_the_grain_of_uniform_numbers_is_drawn_as_often_as_said():
    """A multiple of 2^-23 alone is 0 once in 8 million times, and 1e-9 is less."""
    probs = np.array([1e-9, 0.4, 0.6], np.float32)
    numbers = np.zeros((3, UNIFORMS), np.float32)
    numbers[:, -1] = [0.0, 0.008, 0.009]
    assert jax.jit(jax.vmap(draw, (0, None)))(numbers, probs).tolist() == [0, 0, 1]


def test_nothing_left_is_no_token():
    probs = jnp.array([0.0, 0.3, 0.0, 0.7])
    drawn = draw_without_replacement(uniforms(jax.random.key(0), (3,)), probs)
    assert sorted(drawn.tolist()) == [NO_TOKEN, 1, 3] and int(drawn[2]) == NO_TOKEN
