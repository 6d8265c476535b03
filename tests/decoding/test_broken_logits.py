"""Logits that say nothing end their row; a draft's may say what they like."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import globalres_jax as gr
from globalres_jax.decoding.options import broken_rows
from globalres_jax.transforms import probabilities
from globalres_jax.tree_verifiers import Block
from globalres_jax.verifiers import GreedyDraft, KSeq, RecursiveRejection, SpecHub

ROWS, V, LENGTH = 1500, 4, 4
TARGET, DRAFT = (np.random.default_rng(i).dirichlet(np.full(V, 0.9), V) for i in (0, 1))
RULES = {"k-seq": (KSeq(), 2), "block": (Block(), 1)}
BROKEN = {
    "NaN": (slice(None), np.nan),
    "one NaN": (1, np.nan),
    "-inf": (slice(None), -np.inf),
    "+inf": (2, np.inf),
    "two +inf": ([1, 2], np.inf),
}


def model(logits):
    bare = gr.testing.markov_model(jnp.full((V, V), 1 / V))
    return dataclasses.replace(bare, params=jnp.asarray(logits, jnp.float32))


def generate(target, draft, rule, num_drafts=2, **options):
    config = gr.SpeculativeConfig(
        num_drafts=num_drafts, draft_length=2, verifier=rule, **options
    )
    prompts, lengths = np.zeros((ROWS, 1), int), np.ones(ROWS, int)
    key = jax.random.key(1)
    return gr.generate(
        key, model(target), model(draft), prompts, lengths, config, LENGTH
    )


@pytest.mark.parametrize("name", RULES)
def test_the_law_is_the_targets_whatever_the_draft_says(name):
    rule, num_drafts = RULES[name]
    law = (TARGET[0][:, None] * TARGET).reshape(-1)
    for columns, value in BROKEN.values():
        draft = np.log(DRAFT)
        draft[:, columns] = value
        result = generate(np.log(TARGET), draft, rule, num_drafts)
        seen = np.asarray(result.tokens)[:, :2] @ [V, 1]
        seen = np.bincount(seen, minlength=V * V)
        assert stats.chisquare(seen, ROWS * law).pvalue > 1e-3
        assert not np.any(result.failed)


@pytest.mark.parametrize("name", ["k-seq", "block"])
def test_a_row_ends_where_the_target_says_nothing_and_others_go_on(name):
    """After token 2 comes a NaN, after token 3 nothing but -inf."""
    rule, num_drafts = RULES[name]
    logits = np.log(TARGET)
    logits[2, 1], logits[3] = np.nan, -np.inf
    result = generate(logits, np.log(DRAFT), rule, num_drafts)
    failed = np.asarray(result.failed)
    assert 0.5 < failed.mean() < 0.95
    for tokens, length, has_failed in zip(
        np.asarray(result.tokens), result.lengths, failed, strict=True
    ):
        ends = [i + 1 for i, token in enumerate(tokens[: LENGTH - 1]) if token >= 2]
        # The last token that was wanted may be followed by nothing: nobody looked.
        assert has_failed == bool(ends)
        assert int(length) == (ends[0] if ends else LENGTH)
        assert np.all(tokens[length:] == -1)
    # Up to there the text has its law.
    seen = np.bincount(np.asarray(result.tokens)[:, 0], minlength=V)
    assert stats.chisquare(seen, ROWS * TARGET[0]).pvalue > 1e-3


def test_one_infinite_logit_is_that_token_and_nothing_is_no_token():
    """Of the same program: what is broken is data."""
    rule, num_drafts = RULES["k-seq"]
    logits = np.log(TARGET)
    logits[:, 1] = np.inf
    result = generate(logits, np.log(DRAFT), rule, num_drafts)
    assert np.all(np.asarray(result.tokens) == 1) and not np.any(result.failed)
    result = generate(np.full((V, V), np.nan), np.log(DRAFT), rule, num_drafts)
    assert np.all(result.failed) and np.all(np.asarray(result.lengths) == 0)
    assert np.all(np.asarray(result.tokens) == -1)


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        (KSeq(), gr.IID),
        (SpecHub(), gr.TopPlusSample),
        (GreedyDraft(), gr.TopPlusSample),
    ],
)
def test_a_rule_alone_follows_no_draft_that_says_nothing(rule, law):
    """Where `jit` hides the values, so that the law cannot refuse them."""
    p = jnp.asarray(TARGET[0], jnp.float32)

    @jax.jit
    def output(q, key):
        drafts = law(q, 2).sample(key)
        decision = rule.decide(p, law(q, 2), drafts)
        slots = jnp.where(drafts >= 0, drafts, V)
        return decision.residual.at[slots].add(decision.accept, mode="drop")

    for q in (
        jnp.full(V, jnp.nan),
        jnp.array([0.25, jnp.nan, 0.5, 0.25]),
        jnp.zeros(V),
    ):
        np.testing.assert_allclose(output(q, jax.random.key(0)), p, atol=1e-6)


def test_plain_decoding_and_jit_say_so_too():
    logits = np.log(TARGET)
    logits[2] = np.nan

    @jax.jit
    def run(target):
        prompts, lengths = jnp.array([[2], [0]]), jnp.array([1, 1])
        config = gr.SpeculativeConfig(temperature=0)
        return gr.generate(
            jax.random.key(0), target, None, prompts, lengths, config, LENGTH
        )

    result = run(model(logits))
    assert result.failed.tolist()[0] and int(result.lengths[0]) == 0
    text, token = [], 0
    while len(text) < LENGTH and token != 2:
        token = int(TARGET[token].argmax())
        text.append(token)
    assert result.tokens[1, : len(text)].tolist() == text
    assert bool(result.failed[1]) == (len(text) < LENGTH)


def test_broken_rows_wherever_the_nan_stands():
    logits = np.zeros((70, 64), np.float32)
    logits[np.arange(64), np.arange(64)] = np.nan
    logits[64], logits[65, 3] = -np.inf, -np.inf
    logits[66, 1], logits[67] = np.inf, np.inf
    wanted = np.arange(70) <= 64
    np.testing.assert_array_equal(jax.jit(broken_rows)(logits), wanted)


def test_the_lowest_temperatures_are_no_division_by_zero():
    """Ties share, as at any temperature that is not 0; as data, too."""
    logits = jnp.array([[1.0, 3.0, 3.0, -jnp.inf]])
    for temperature in (1e-45, 1e-38, 1e-37, 1e-20):
        found = probabilities(logits, temperature)
        np.testing.assert_array_equal(found, [[0, 0.5, 0.5, 0]])
        found = gr.SamplingOptions(temperature=temperature).for_rows(1)
        found = jax.jit(lambda o: o.to_probabilities(logits))(found)
        np.testing.assert_array_equal(found, [[0, 0.5, 0.5, 0]])
    traced = jax.jit(probabilities)
    for temperature in (1e-38, np.inf):
        assert float(traced(logits, jnp.float32(temperature)).sum()) == 1
    np.testing.assert_allclose(probabilities(logits, np.inf), [[1 / 3] * 3 + [0]])


def test_temperatures_that_vanish_decode():
    rule = RecursiveRejection()
    result = generate(np.log(TARGET), np.log(DRAFT), rule, temperature=1e-38)
    text, token = [], 0
    for _ in range(LENGTH):
        token = int(TARGET[token].argmax())
        text.append(token)
    assert np.all(np.asarray(result.tokens) == text)
