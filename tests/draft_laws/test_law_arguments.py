"""What a law is made from: shapes, data, and errors for people."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr


def test_a_support_too_small_under_jit_drafts_what_there_is(float64):
    """Nobody can count there: the lacking drafts are NO_TOKEN, and nothing is lossy."""
    p, q = np.array([0.3, 0.3, 0.4]), np.array([0.6, 0.4, 0.0])
    for make, rule, chances in (
        # A rule that fits all laws would compile three clocks here.
        (
            gr.WithoutReplacement,
            gr.verifiers.RecursiveRejection(),
            {(0, 1, -1): 0.6, (1, 0, -1): 0.4},
        ),
        (gr.TopPlusSample, gr.verifiers.GlobalResolution(), {(0, 1, -1): 1}),
    ):
        possible = np.array(list(chances))

        @jax.jit
        def outcomes(p, q, key, make=make, rule=rule, possible=possible):
            law = make(q, 3)
            decide = jax.vmap(lambda order: rule.decide(p, law, order))
            return law.sample(key), decide(possible)

        drafts, decisions = outcomes(p, q, jax.random.key(0))
        assert tuple(np.asarray(drafts).tolist()) in chances
        emitted = np.array(decisions.residual)
        for row, drawn in enumerate(possible):
            np.add.at(emitted[row], drawn, np.asarray(decisions.accept)[row])
        np.testing.assert_allclose(list(chances.values()) @ emitted, p, atol=1e-9)


def test_a_drafter_keeps_its_own_tokens_under_jit():
    """The others' may all be likelier: without its own it would be no law at all."""
    rows = jnp.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0.4, 0.3, 0.3]])
    held = jax.jit(lambda q: gr.Independent(q, max_support=1).probs)(rows)
    assert held.tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]


def test_what_processors_take_for_zero_is_no_token():
    q = np.array([0.5, 0.5, 1e-40], np.float32)
    with pytest.raises(ValueError, match="only 2 tokens"):
        gr.WithoutReplacement(q, 3)
    assert gr.IID(q, 2).probs[2] == 0


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
    ("make", "message"),
    [
        (lambda q: gr.WithoutReplacement(q, 3), "num_drafts: 3 different drafts, but"),
        (lambda q: gr.TopPlusSample(q, 3), "num_drafts: 3 different drafts, but only"),
        (lambda q: gr.WithoutReplacement(q, 0), "num_drafts: must be at least 1"),
        (lambda q: gr.WithoutReplacement(q, 1, 1), "max_support: 2 tokens of probs"),
        (lambda q: gr.Independent(q), "probs: expected a non-empty array of 2"),
        (lambda q: gr.Independent(q[None], 1), "max_support: 2 tokens of a row"),
        (lambda q: gr.Deterministic(q, 3), "tokens: expected integers"),
        (lambda q: gr.Deterministic([1, 1], 3), "tokens: must be different"),
        (lambda q: gr.Deterministic([1, 3], 3), r"tokens: must lie in \[0, 3\)"),
        (lambda q: gr.Deterministic([[1]], 3), r"tokens: expected shape \[n\]"),
    ],
)
def test_laws_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.array([0.5, 0.5, 0.0]))


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
