"""Drafts from the text itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr

WIDTH = 12


@functools.partial(jax.jit, static_argnames=("count", "max_ngram"))
def continuation(text, length, count, max_ngram):
    lookup = gr.PromptLookup(max_ngram=max_ngram)
    return lookup.continuation(text, length, count)


def proposals(text, count, max_ngram=3):
    padded = np.zeros(30, np.int32)
    padded[: len(text)] = text
    found, matched = continuation(padded, len(text), 5, max_ngram)
    return found[:count].tolist(), int(matched)


def searched(text, count, max_ngram=3):
    """The definition, in plain Python: tokens, and how many had occurred."""
    last = len(text) - 1
    for size in range(max_ngram, 0, -1):
        for end in range(last - 1, size - 2, -1):
            if text[end - size + 1 : end + 1] == text[last - size + 1 :]:
                period = text[end + 1 :]
                return [period[i % len(period)] for i in range(count)], size
    return [text[-1]] * count, 0


def test_proposals_are_what_followed():
    assert proposals([1, 2, 3, 9, 4, 1, 2, 3], 3) == ([9, 4, 1], 3)
    assert proposals([5, 7, 5, 7], 4) == ([5, 7, 5, 7], 2)
    assert proposals([1, 2, 3], 2) == ([3, 3], 0)
    assert proposals([4], 2) == ([4, 4], 0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        text = rng.integers(0, 3, rng.integers(1, 20)).tolist()
        for max_ngram in (1, 2, 3):
            wanted = searched(text, 5, max_ngram)
            assert proposals(text, 5, max_ngram) == wanted, (text, max_ngram)


@pytest.fixture(scope="module")
def target():
    rows = np.random.default_rng(4).dirichlet(np.full(3, 0.7), 3)
    return gr.testing.markov_model(jnp.asarray(rows, jnp.float32)), rows


@pytest.mark.parametrize(
    "name",
    [pytest.param("global-resolution", marks=pytest.mark.sweep), "single-draft"],
)
def test_joint_law_with_drafts_from_the_text(target, name):
    """Chi-square of 6,000 rows against the law of a Markov chain."""
    from scipy.stats import chisquare

    model, rows = target
    batch = 6_000
    rule = gr.verifiers.by_name(name)
    config = gr.SpeculativeConfig(
        num_drafts=1, draft_length=2, verifier=rule, measure_optimum=False
    )
    prompts = jnp.broadcast_to(jnp.array([[0, 1, 2, 0, 1]]), (batch, 5))
    result = gr.generate(
        jax.random.key(1),
        model,
        gr.PromptLookup(),
        prompts,
        jnp.full(batch, 5),
        config,
        3,
    )
    codes = np.asarray(result.tokens) @ [9, 3, 1]
    law = np.einsum("a,ab,bc->abc", rows[1], rows, rows).reshape(-1)
    found = chisquare(np.bincount(codes, minlength=27), batch * law)
    assert found.pvalue > 1e-4
    accepted = result.metrics.num_accepted_draft_tokens
    assert 0 < float(accepted.mean()) < 2


def test_a_text_that_repeats_is_drafted_whole():
    cycle = jnp.asarray(np.eye(4)[[1, 2, 3, 0]], jnp.float32)
    rule = gr.verifiers.SingleDraft()
    config = gr.SpeculativeConfig(
        num_drafts=1, draft_length=3, verifier=rule, measure_optimum=False
    )
    prompts = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3]])
    result = gr.generate(
        jax.random.key(0),
        gr.testing.markov_model(cycle),
        gr.PromptLookup(),
        prompts,
        jnp.array([8]),
        config,
        WIDTH,
    )
    np.testing.assert_array_equal(result.tokens[0], np.arange(WIDTH) % 4)
    assert float(result.metrics.mean_acceptance_length[0]) == 4


def test_rows_without_drafts_are_decoded_plainly(target):
    """Alone by steps without drafts, in a batch with others: the same tokens."""
    model, rule = target[0], gr.verifiers.GlobalResolution()
    config = gr.SpeculativeConfig(num_drafts=1, draft_length=2, verifier=rule)
    lookup = gr.PromptLookup(min_ngram=3)
    prompts = np.array([[0, 1, 2, 0, 1, 2, 0], [0, 1, 1, 2, 2, 0, 0]])
    keys = jax.random.split(jax.random.key(3), 2)

    def tokens(rows):
        found = gr.generate(
            keys[rows], model, lookup, prompts[rows], np.full(len(rows), 7), config, 6
        )
        return np.asarray(found.tokens), found.metrics

    together, counts = tokens(np.array([0, 1]))
    for row in (0, 1):
        np.testing.assert_array_equal(tokens(jnp.array([row]))[0][0], together[row])
    steps, drafted = counts.num_spec_steps, counts.num_draft_tokens
    assert 0 < int(drafted[0]) <= 2 * int(steps[0])
    assert int(drafted[1]) < 2 * int(steps[1])
    np.testing.assert_array_equal(counts.acceptance_histogram.sum(1), steps)


def test_trees_that_branch_are_refused(target):
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=2)
    with pytest.raises(ValueError, match="num_drafts: prompt lookup drafts one path"):
        gr.generate(
            jax.random.key(0),
            target[0],
            gr.PromptLookup(),
            jnp.array([[0]]),
            jnp.array([1]),
            config,
            4,
        )
    with pytest.raises(ValueError, match="max_ngram: must be at least 1, got 0"):
        gr.PromptLookup(max_ngram=0)
    with pytest.raises(ValueError, match="min_ngram: must be from 1 to max_ngram, 3"):
        gr.PromptLookup(min_ngram=4)
    assert gr.PromptLookup(max_ngram=1).min_ngram == 1
