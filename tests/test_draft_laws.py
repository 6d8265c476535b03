import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distributions

import globalres_jax as gr


def test_samples_follow_the_law():
    _, q = next(distributions(5, seed=0, count=1))
    law = gr.IID(jnp.asarray(q, jnp.float32), 3)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drafts = np.asarray(jax.vmap(law.sample)(keys))
    assert drafts.shape == (20_000, 3) and drafts.dtype == np.int32
    for slot in range(3):
        seen = np.bincount(drafts[:, slot], minlength=5) / 20_000
        assert np.all(np.abs(seen - q) <= 5 * np.sqrt(q * (1 - q) / 20_000) + 1e-9)


def test_probability_of_tuples_sums_to_one_and_gives_containment(float64):
    _, q = next(distributions(4, seed=1, count=1))
    law = gr.IID(jnp.asarray(q), 3)
    drafts = gr.testing.draft_tuples(law)
    chance = np.asarray(jax.vmap(law.draft_probability)(drafts))
    assert chance.sum() == pytest.approx(1)
    members = jnp.array([True, False, True, False])
    inside = np.asarray(members[drafts].all(1))
    assert float(law.containment(members)) == pytest.approx(chance[inside].sum())
    u = jnp.array([0.3, 1.0, 0.0, 2.0])
    expected = (chance * np.exp(-np.asarray(u)[drafts].sum(1))).sum()
    assert float(law.laplace(u)) == pytest.approx(expected)


def test_number_of_drafts_is_shape_or_data():
    q = jnp.array([0.5, 0.5])
    traced = jax.jit(lambda n: gr.IID(q, n).containment(jnp.array([True, False])))
    assert float(traced(1)) == 0.5 and float(traced(3)) == 0.125
    leaves, tree = jax.tree.flatten(gr.IID(q, 2))
    assert len(leaves) == 1
    assert jax.tree.unflatten(tree, leaves).num_drafts == 2
    with pytest.raises(ValueError, match="num_drafts: sample needs a Python int"):
        jax.jit(lambda n: gr.IID(q, n).sample(jax.random.key(0)))(2)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.5, np.nan], "probs: contains NaN"),
        ([1.5, -0.5], "probs: contains the negative value -0.5"),
        ([0.0, 0.0], "probs: is zero everywhere"),
        ([2.0, 1.0], "probs: sums to 3"),
        ([[0.5, 0.5]], r"probs: expected a non-empty array of 1 .* shape \(1, 2\)"),
        ([1, 0], "probs: expected floating point"),
    ],
)
def test_bad_probabilities_are_named(probs, message):
    with pytest.raises(ValueError, match=message):
        gr.IID(np.array(probs), 2)


def test_bad_options_are_named():
    q = jnp.array([0.5, 0.5])
    with pytest.raises(ValueError, match="num_drafts: must be at least 1, got 0"):
        gr.IID(q, 0)
    with pytest.raises(ValueError, match=r"num_drafts: expected an integer, got 1\.5"):
        gr.IID(q, 1.5)
    with pytest.raises(ValueError, match="max_support: 2 tokens of probs are above"):
        gr.IID(q, 2, max_support=1)
    with pytest.raises(ValueError, match="max_support: must be at least 1"):
        gr.IID(q, 2, max_support=0)
