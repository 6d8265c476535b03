"""How rows ended, and the log-probabilities of what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import globalres_jax as gr
from globalres_jax.decoding.log_probabilities import log_softmax as of_logits

V, NEW = 6, 13
TARGET, DRAFT = (
    gr.testing.markov_model(
        np.random.default_rng(i).dirichlet(np.full(V, 0.7), V).astype(np.float32)
    )
    for i in (0, 1)
)
PROMPTS, LENGTHS = np.array([[0, 1], [2, 0], [3, 4]]), np.array([2, 1, 2])
OPTIONS = gr.SamplingOptions(
    temperature=np.float32([0.7, 0.0, 1.6]), min_p=np.float32([0.0, 0.0, 0.3])
)
RULES = {
    "chain": gr.SpeculativeConfig(
        num_drafts=1, draft_length=2, verifier=gr.verifiers.SingleDraft()
    ),
    "recursive": gr.SpeculativeConfig(
        num_drafts=2, draft_length=2, verifier=gr.verifiers.RecursiveRejection()
    ),
    "layer": gr.SpeculativeConfig(num_drafts=2, draft_length=2),
    "plain": gr.SpeculativeConfig(draft_length=0),
}
#: The rule decides nothing about them; `chain` has the alternatives, too.
SLOW = ["chain", "layer"]


def generate(config, eos_id=(), target=TARGET, **changes):
    config = dataclasses.replace(config, **changes)
    key = jax.random.key(2)
    rows = PROMPTS, LENGTHS
    return gr.generate(
        key, target, DRAFT, *rows, config, NEW, eos_id=eos_id, options=OPTIONS
    )


def filtered(logits: np.ndarray, temperature, min_p) -> np.ndarray:
    """The distributions of rows of logits [T, V]."""
    below = logits - logits.max(1, keepdims=True)
    weights = np.exp(below / temperature) if temperature else below == 0
    weights = np.where(weights >= min_p, weights, 0)
    return weights / weights.sum(1, keepdims=True)


def check(result, rows_of, options):
    """The result's log-probabilities against the target's own logits.

    Args:
      rows_of: row and its tokens to the logits [T, V] that each followed.
      options: of each row: temperature and min_p.
    """
    found = jax.tree.map(np.asarray, result)
    for i, length in enumerate(found.lengths):
        tokens = found.tokens[i, :length]
        logits = np.asarray(rows_of(i, tokens), np.float64)
        own, at = log_softmax(logits, axis=-1), np.arange(length)
        near = dict(rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            found.log_probabilities[i, :length], own[at, tokens], **near
        )
        p = filtered(logits, *options[i])
        np.testing.assert_allclose(
            found.sampling_log_probabilities[i, :length],
            np.log(p[at, tokens]),
            **near,
        )
        if found.top_tokens is not None:
            count = found.top_tokens.shape[-1]
            top = np.argsort(-own, axis=-1, kind="stable")[:, :count]
            np.testing.assert_array_equal(found.top_tokens[i, :length], top)
            np.testing.assert_allclose(
                found.top_log_probabilities[i, :length],
                np.take_along_axis(own, top, 1),
                **near,
            )
            assert np.all(found.top_tokens[i, length:] == -1)
        assert not np.any(found.log_probabilities[i, length:])
        assert not np.any(found.sampling_log_probabilities[i, length:])


def of_table(i, tokens):
    before = [PROMPTS[i, LENGTHS[i] - 1], *tokens[:-1]]
    return np.asarray(TARGET.params)[before]


TABLE_OPTIONS = [(0.7, 0), (0, 0), (1.6, 0.3)]


@pytest.mark.parametrize(
    "name",
    ["recursive", "plain", *(pytest.param(n, marks=pytest.mark.sweep) for n in SLOW)],
)
def test_log_probabilities_are_those_of_the_targets_rows(name):
    result = generate(RULES[name], log_probabilities=True)
    assert result.top_tokens is None
    check(result, of_table, TABLE_OPTIONS)
    if name != "plain":  # of drafts and of bonus tokens
        assert 0 < np.mean(result.from_draft) < 1
        assert float(result.metrics.acceptance_histogram[:, -1].sum()) > 0


def test_alternatives_come_with_them():
    for ends in ((), 3):
        result = generate(RULES["chain"], eos_id=ends, top_log_probabilities=4)
        assert result.top_tokens.shape == (3, NEW, 4)
        check(result, of_table, TABLE_OPTIONS)
        bare = generate(RULES["chain"], eos_id=ends)
        np.testing.assert_array_equal(bare.tokens, result.tokens)
        assert bare.log_probabilities is bare.sampling_log_probabilities is None
    assert min(result.lengths) < NEW
    with pytest.raises(ValueError, match="top_log_probabilities: 7 of a vocabulary of"):
        generate(RULES["chain"], top_log_probabilities=7)
    with pytest.raises(ValueError, match="top_log_probabilities: must be 0 or more"):
        gr.SpeculativeConfig(top_log_probabilities=-1)
    with pytest.raises(TypeError, match="log_probabilities: expected True or False"):
        gr.SpeculativeConfig(log_probabilities=3)


def test_rows_stop_reach_their_cap_or_fail():
    """After token 3 there is nothing to say."""
    table = np.asarray(TARGET.params).copy()
    table[3] = np.nan
    broken = dataclasses.replace(TARGET, params=jnp.asarray(table))
    ends = np.array([[-1], [-1], [0]])
    result = generate(RULES["chain"], eos_id=ends, target=broken)
    seen = set()
    for row, reason in enumerate(result.finish_reasons):
        last = int(result.tokens[row, result.lengths[row] - 1])
        wanted = "stop" if last in ends[row] else "failed" if last == 3 else "length"
        assert reason == wanted and (reason != "length" or result.lengths[row] == NEW)
        seen.add(reason)
    assert seen == {"stop", "length", "failed"}
    assert result.stopped.tolist() == [r == "stop" for r in result.finish_reasons]


def test_an_end_token_in_the_last_place_is_a_stop():
    result = generate(RULES["chain"])
    last = int(result.tokens[0, -1])
    first = [int(t) for t in result.tokens[0]].index(last)
    assert result.finish_reasons == ["length"] * 3
    config = RULES["chain"]
    cut = gr.generate(
        jax.random.key(2),
        TARGET,
        DRAFT,
        PROMPTS,
        LENGTHS,
        config,
        [first + 1, NEW, NEW],
        eos_id=np.array([[last], [-1], [-1]]),
        options=OPTIONS,
    )
    assert cut.finish_reasons == ["stop", "length", "length"]
    assert int(cut.lengths[0]) == first + 1


def test_infinite_logits_share_the_mass():
    logits = jnp.array([[0.0, np.inf, 1.0, np.inf], [-np.inf, 2.0, 2.0, 2.0]])
    found = np.exp(of_logits(logits))
    third = 1 / 3
    np.testing.assert_allclose(
        found, [[0, 0.5, 0, 0.5], [0, third, third, third]], rtol=1e-6
    )
