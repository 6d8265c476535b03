"""Ends, caps, rows, options and counts of `generate`, and requests that it refuses."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loaded import DATA, LENGTH, prefill
from markov_pairs import (
    CONFIGS,
    TARGET,
    TEMPERATURE,
    three_tokens,
    transition,
)
from scipy import stats
from scipy.special import log_softmax

import globalres_jax as gr
from globalres_jax import models
from globalres_jax.decoding import loop
from globalres_jax.decoding.request import end_tokens
from globalres_jax.verifiers import (
    RecursiveRejection,
    SingleDraft,
)

#: Where the rule does not matter, one that compiles fast.
CHEAP = gr.SpeculativeConfig(
    num_drafts=2, draft_length=2, verifier=RecursiveRejection(), measure_optimum=False
)


def greedy(table: np.ndarray, start: int, length: int) -> list[int]:
    text = [start]
    for _ in range(length):
        text.append(int(table[text[-1]].argmax()))
    return text[1:]


#: Greedy text 3 1 0 3 1 0 ... or 4 2 5 4 ...: what follows is known in advance.
TABLE = np.eye(6)[[3, 0, 5, 1, 2, 4]]
#: One token, or two, of which the first that is met ends a row; -1 is none.
ENDS = [(-1, -1), (0, -1), (2, -1), (4, -1), (5, -1), (1, 2), (5, 0)]
CUTS = list(itertools.product((0, 5), ENDS, (1, 2, 5, 17)))


def without_choice(draft, prompts, lengths, caps, eos_id):
    """Texts of the one-hot target: one shape, and so one program, for all."""
    target = gr.testing.markov_model(jnp.asarray(TABLE, jnp.float32))
    target = dataclasses.replace(target, eos_id=(1, 4))
    draft = dataclasses.replace(
        gr.testing.markov_model(jnp.asarray(draft, jnp.float32)), eos_id=(1, 4)
    )
    config = dataclasses.replace(CHEAP, draft_length=3)
    rows = len(CUTS)
    return gr.generate(
        jax.random.key(0),
        target,
        draft,
        np.resize(prompts, (rows, 2)),
        np.resize(lengths, rows),
        config,
        np.broadcast_to(caps, rows),
        eos_id,
    )


def test_one_hot_target_leaves_no_choice():
    prompts, lengths = [[0, 0], [1, 4], [5, 2]], [1, 2, 2]
    ends = np.full((len(CUTS), 2), -1)
    result = without_choice(transition(2, 6), prompts, lengths, 17, ends)
    for row, tokens in enumerate(result.tokens):
        assert tokens.tolist() == greedy(TABLE, (0, 4, 2)[row % 3], 17)


def test_zero_temperature_is_greedy_decoding():
    """Each token is the likeliest after all before it, read in one pass.

    And as likely as the result says, next to the second.
    """
    target, draft = models.load_pair(DATA / "qwen2", "layers:0")
    prompts, lengths = np.array([[3, 4, 5], [7, 0, 0]]), np.array([3, 1])
    config = dataclasses.replace(CHEAP, temperature=0.0, top_log_probabilities=2)
    new = LENGTH - 3
    found = gr.generate(
        jax.random.key(0), target, draft, prompts, lengths, config, new, eos_id=()
    )
    assert int(found.metrics.num_spec_steps.max()) < new
    texts = np.zeros((2, LENGTH), np.int32)
    for text, prompt, length, tokens in zip(
        texts, prompts, lengths, np.asarray(found.tokens), strict=True
    ):
        text[: length + new] = [*prompt[:length], *tokens]
    logits = log_softmax(np.float64(prefill(target, texts)[0]), axis=-1)
    for row, length in enumerate(lengths):
        wanted = logits[row, length - 1 : length - 1 + new]
        np.testing.assert_array_equal(found.tokens[row], wanted.argmax(-1))
        np.testing.assert_allclose(
            found.log_probabilities[row], wanted.max(-1), rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(
            found.top_log_probabilities[row],
            -np.sort(-wanted, axis=-1)[:, :2],
            rtol=0,
            atol=1e-5,
        )
    assert not np.any(found.sampling_log_probabilities)  # each certain


def test_stops_at_ends_and_caps_of_each_row_and_nothing_leaks():
    starts, eos, caps = map(np.array, zip(*CUTS, strict=True))
    prompts, lengths = np.stack([starts, starts], 1), np.ones(len(CUTS), int)
    result = without_choice(TABLE, prompts, lengths, caps, eos)
    tokens, from_draft = np.asarray(result.tokens), np.asarray(result.from_draft)
    for row, (start, stops, cap) in enumerate(CUTS):
        text = greedy(TABLE, start, cap)
        met = [i for i, token in enumerate(text) if token in stops]
        text = text[: met[0] + 1] if met else text
        assert int(result.lengths[row]) == len(text)
        assert tokens[row].tolist() == text + [-1] * (17 - len(text))
        assert not from_draft[row, len(text) :].any()


def test_text_ends_at_the_models_own_end_unless_told_otherwise():
    def length(eos_id=None):
        return int(without_choice(TABLE, [0, 0], 1, 17, eos_id).lengths[0])

    assert length() == 2 and length([0, -1]) == 3 and length([0, 3]) == 1
    assert length([-1, -1]) == 17
    # One token, or none, is as one that is met or never is.
    np.testing.assert_array_equal(end_tokens(0, 2), [[0], [0]])
    np.testing.assert_array_equal(end_tokens((), 2), [[-1], [-1]])


def test_a_row_does_not_depend_on_its_batch(pair):
    prompts = np.array([[0, 1, 2], [2, 0, 0], [1, 1, 0]])
    lengths = np.array([3, 1, 2])
    keys = jax.random.split(jax.random.key(5), 3)
    config = CHEAP
    together = gr.generate(keys, *pair, prompts, lengths, config, 30)
    for row in range(3):
        one = slice(row, row + 1)
        alone = gr.generate(
            keys[one], *pair, prompts[one], lengths[one], config, 30, eos_id=None
        )
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
    # One key: row i uses fold_in(key, i), whatever follows in the batch.
    key = jax.random.key(6)
    many = gr.generate(key, *pair, prompts, lengths, config, 30)
    first = gr.generate(key, *pair, prompts[:1], lengths[:1], config, 30)
    np.testing.assert_array_equal(many.tokens[0], first.tokens[0])
    again = gr.generate(key, *pair, prompts, lengths, config, 30)
    chex.assert_trees_all_equal(many, again)


def test_jit_of_the_whole_and_no_recompilation(pair):
    prompts, config = jnp.array([[0, 1, 2]]), CHEAP
    jitted = jax.jit(
        gr.generate, static_argnames=("config", "max_new_tokens", "eos_id")
    )

    def run(function, seed, length):
        lengths = jnp.array([length])
        return function(
            jax.random.key(seed),
            *pair,
            prompts,
            lengths,
            config=config,
            max_new_tokens=30,
        )

    chex.assert_trees_all_equal(run(jitted, 1, 3).tokens, run(gr.generate, 1, 3).tokens)
    compiled = loop._generate._cache_size()
    run(gr.generate, 2, 1)
    assert loop._generate._cache_size() == compiled
    # Other sampling options, caps and ends are data.
    other = dataclasses.replace(config, temperature=0.3)
    gr.generate(jax.random.key(3), *pair, prompts, jnp.array([2]), other, [30], 1)
    assert loop._generate._cache_size() == compiled


def test_a_draft_equal_to_its_target_is_always_accepted(pair):
    target, _ = pair
    m = three_tokens(target, target, CONFIGS["global"]).metrics
    # Two accepted tokens and a bonus each step, up to the solver's gap.
    assert float(m.mean_acceptance_length.mean()) > 2.99
    np.testing.assert_allclose(m.optimal_acceptance_rate, 1, atol=1e-5)


def test_metrics_add_up(pair):
    result = three_tokens(*pair, CONFIGS["global"])
    m = jax.tree.map(np.asarray, result.metrics)
    np.testing.assert_array_equal(m.acceptance_histogram.sum(1), m.num_spec_steps)
    for row, lengths in enumerate(result.accepted_lengths()):
        assert len(lengths) == m.num_spec_steps[row]
        assert sum(lengths) == result.from_draft[row].sum()
    assert np.isnan(m.expected_sum).all()  # the rule does not say
    weighted = m.acceptance_histogram @ np.arange(3)
    np.testing.assert_array_equal(weighted, m.num_accepted_draft_tokens)
    np.testing.assert_array_equal(m.num_draft_tokens, 4 * m.num_spec_steps)
    assert np.all(m.num_spec_steps + m.num_accepted_draft_tokens >= 3)
    np.testing.assert_allclose(
        m.mean_acceptance_length - 1, m.per_position_acceptance_rate.sum(1), rtol=1e-5
    )
    # The optimal rule accepts as often as the optimum says: 5 standard errors.
    reached = float(m.reached_per_position.sum())
    rate = float(m.num_accepted_draft_tokens.sum()) / reached
    optimum = float(m.optimum_sum.sum()) / reached
    assert abs(rate - optimum) <= 5 * np.sqrt(optimum * (1 - optimum) / reached)


def test_options_may_differ_from_row_to_row(pair):
    """Greedy rows, rows of one token by top-k or by top-p, and rows of temperature.

    Their drafts have temperatures of their own, of which the text knows nothing.
    """
    kinds, rows = 4, 400
    prompts = np.zeros((kinds * rows, 1), np.int32)
    options = gr.SamplingOptions(
        temperature=np.repeat(np.float32([0.0, 1.0, 1.0, TEMPERATURE]), rows),
        top_k=np.repeat([3, 1, 3, 3], rows),
        top_p=np.repeat(np.float32([1.0, 1.0, 1e-6, 1.0]), rows),
        draft_temperature=np.repeat(np.float32([2.0, 1.0, 0.5, 0.4]), rows),
    )
    lengths = np.ones(kinds * rows, np.int32)
    result = gr.generate(
        jax.random.key(0), *pair, prompts, lengths, CHEAP, 3, options=options
    )
    texts = np.asarray(result.tokens).reshape(kinds, rows, 3)
    assert np.all(texts[:3] == greedy(TARGET, 0, 3))
    chain = TARGET ** (1 / TEMPERATURE)
    chain = chain / chain.sum(1, keepdims=True)
    law = chain[0][:, None, None] * chain[:, :, None] * chain[None]
    seen = np.bincount(texts[3] @ [9, 3, 1], minlength=27)
    assert stats.chisquare(seen, rows * law.reshape(-1)).pvalue > 1e-3
    with pytest.raises(ValueError, match=r"top_k: expected a number or 2, one for eac"):
        gr.SamplingOptions(top_k=np.array([1, 2, 3])).for_rows(2)
    with pytest.raises(ValueError, match="top_k: 5 is larger than max_top_k, 4"):
        gr.SamplingOptions(top_k=5, max_top_k=4)


def test_a_replaced_number_of_drafts_is_another_tree():
    config = gr.SpeculativeConfig(num_drafts=4, draft_length=3)
    assert config.token_tree == gr.tree.paths(4, 3)
    other = dataclasses.replace(config, num_drafts=8)
    assert other.token_tree == gr.tree.paths(8, 3) and hash(other) != hash(config)
    given = gr.SpeculativeConfig(tree=gr.tree.chain(2), num_drafts=7)
    assert dataclasses.replace(given, num_drafts=8).token_tree == gr.tree.chain(2)


def test_bad_requests_of_text_are_named(pair):
    target, draft = pair
    key, prompts, lengths = jax.random.key(0), jnp.array([[0, 1]]), jnp.array([2])
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=2)

    def refuses(message, **changes):
        request = {
            "target": target,
            "draft": draft,
            "prompts": prompts,
            "prompt_lengths": lengths,
            "config": config,
            "max_new_tokens": 4,
        }
        with pytest.raises(ValueError, match=message):
            gr.generate(key, **(request | changes))

    other = gr.testing.markov_model(jnp.full((4, 4), 0.25))
    refuses("draft: has 4 tokens, the target 3", draft=other)
    refuses("prompts: empty", prompts=jnp.zeros((1, 0), jnp.int32))
    refuses("prompt_lengths: an empty prompt", prompt_lengths=jnp.array([0]))
    refuses("prompt_lengths: 3 tokens in prompts of width 2", prompt_lengths=[3])
    refuses(r"prompt_lengths: expected shape \(1,\)", prompt_lengths=[2, 2])
    refuses("prompts: expected integers", prompts=jnp.ones((1, 2)))
    refuses(r"prompts: tokens must lie in \[0, 3\)", prompts=jnp.array([[0, 7]]))
    refuses("max_new_tokens: must be at least 1", max_new_tokens=0)

    def cache(length):
        return dataclasses.replace(config, cache_length=length)

    refuses("cache_length: a draft of 5 nodes does not fit 4 slots", config=cache(4))
    refuses(
        "cache_length: a prompt of 6 tokens does not fit 5 slots",
        prompts=jnp.zeros((1, 6), jnp.int32),
        config=cache(5),
    )
    refuses("need 11 slots, got 10", config=cache(10))
    with pytest.raises(ValueError, match="num_drafts: must be at least 1, got 0"):
        gr.SpeculativeConfig(num_drafts=0)
    with pytest.raises(ValueError, match="SingleDraft verifies 1 draft, got 4"):
        gr.SpeculativeConfig(num_drafts=4, verifier=SingleDraft())
    with pytest.raises(TypeError, match=r"KSeq serves IID.*got WithoutReplacement"):
        gr.SpeculativeConfig(
            num_drafts=2, verifier=gr.verifiers.KSeq(), law=gr.WithoutReplacement
        )
    with pytest.raises(ValueError, match="law: 1 laws for a tree of 5 levels"):
        gr.SpeculativeConfig(law=(gr.IID,))
    with pytest.raises(ValueError, match="draft: None drafts nothing, got a tree"):
        gr.drafters.NoDrafts().check(gr.tree.chain(2), 5)
    with pytest.raises(ValueError, match="temperature: must be 0 or more"):
        gr.SpeculativeConfig(temperature=-0.1)
