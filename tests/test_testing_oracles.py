"""`gr.testing` against what can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax import testing
from globalres_jax.base import NO_TOKEN
from globalres_jax.testing import positions
from globalres_jax.verifiers import Naive, TargetSample

P, Q = np.array([0.1, 0.2, 0.7]), np.array([0.5, 0.3, 0.2])


def test_enumeration_of_target_sampling_is_the_one_on_paper(float64):
    found = testing.enumerate_outcomes(TargetSample(), P, gr.IID(Q, 2))
    assert found.drafts.shape == (9, 2) and found.emitted.shape == (9, 3)
    np.testing.assert_allclose(found.probability, np.outer(Q, Q).ravel())
    np.testing.assert_allclose(found.emitted, np.tile(P, (9, 1)))
    mine = [P[list(set(x))].sum() for x in np.asarray(found.drafts).tolist()]
    np.testing.assert_allclose(found.accepted, mine)
    rate = testing.acceptance_rate(TargetSample(), P, gr.IID(Q, 2))
    assert float(rate) == pytest.approx(P @ (1 - (1 - Q) ** 2))


def test_a_number_of_drafts_that_is_data_is_enumerated_with_gaps(float64):
    law = gr.IID(Q, 1).joined(jnp.array(2), 3)
    found = testing.enumerate_outcomes(TargetSample(), P, law)
    assert found.drafts.shape == (4**3, 3)
    drawn = np.asarray(found.probability) > 0
    assert np.all((np.asarray(found.drafts)[drawn] == NO_TOKEN).sum(1) == 1)
    assert float(found.probability.sum()) == pytest.approx(1)
    assert float(found.acceptance_rate) == pytest.approx(P @ (1 - (1 - Q) ** 2))
    fixed = testing.linear_program(P, gr.IID(Q, 2))
    assert testing.linear_program(P, law) == pytest.approx(fixed)


def test_linear_program_knows_one_draft_and_fixed_drafts():
    overlap = np.minimum(P, Q).sum()
    assert testing.linear_program(P, gr.IID(Q, 1)) == pytest.approx(overlap)
    fixed = gr.Deterministic([2, 0], 3)
    assert testing.linear_program(P, fixed) == pytest.approx(0.8)


def test_one_program_enumerates_all_values_of_one_shape():
    positions._outcomes.clear_cache()
    for q in (Q, Q[::-1]):
        for p in (P, P[::-1]):
            testing.output_law(Naive(), p, gr.IID(q, 2))
            testing.acceptance_rate(Naive(), p, gr.IID(q, 2))
    assert positions._outcomes._cache_size() == 1


def test_too_many_tuples_are_refused():
    with pytest.raises(ValueError, match=r"law: 3\^20 tuples are too many"):
        testing.draft_tuples(gr.IID(Q, 20))


def test_the_markov_model_counts_its_tokens():
    rows = jnp.array([[0.1, 0.9], [0.6, 0.4]])
    model = testing.markov_model(rows)
    cache = model.init_cache(2, 7)
    assert cache.capacity == 7 and cache.length.tolist() == [0, 0]
    tokens = jnp.array([[0, 1, 1], [1, 0, 0]])
    logits, cache = model.apply(model.params, tokens, None, cache, None)
    np.testing.assert_allclose(jax.nn.softmax(logits)[0, 1], rows[1], rtol=1e-6)
    assert cache.length.tolist() == [3, 3]
    kept = cache.keep_path(jnp.array([1, 2]), jnp.zeros((2, 1), int), jnp.array([2, 0]))
    assert kept.length.tolist() == [3, 2]
    assert jax.tree.leaves(cache.with_length(jnp.array([1, 2])))[0].tolist() == [1, 2]
