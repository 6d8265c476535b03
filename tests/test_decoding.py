"""Text is exactly the target's: through the real loop, batched and ragged."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutants import ResidualFromTarget
from scipy import stats

import globalres_jax as gr
from globalres_jax import models
from globalres_jax.base import Model
from globalres_jax.decoding import loop as decoding
from globalres_jax.verifiers import GlobalResolution, RecursiveRejection, SingleDraft

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEMPERATURE = 1.5
ROWS = 6000


def transition(seed: int, vocab_size: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(vocab_size, 0.7), vocab_size)


TARGET, DRAFT = transition(0), transition(1)


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    return tuple(
        gr.testing.markov_model(jnp.asarray(x, jnp.float32)) for x in (TARGET, DRAFT)
    )


def worst_chi_square_p_value(pair, config, seed=0) -> float:
    """Joint law of three tokens after two ragged prompts, against the target's."""
    half = ROWS // 2
    prompts = jnp.array([[1, 0, 0, 0]] * half + [[2, 1, 0, 2]] * half)
    lengths = jnp.array([1] * half + [4] * half)
    result = gr.generate(
        jax.random.key(seed), *pair, prompts, lengths, config, max_new_tokens=3
    )
    chain = TARGET ** (1 / TEMPERATURE)
    chain = chain / chain.sum(1, keepdims=True)
    p_values = []
    for part, start in ((slice(0, half), 1), (slice(half, None), 2)):
        text = np.asarray(result.tokens[part])
        seen = np.bincount(text @ [9, 3, 1], minlength=27)
        law = chain[start][:, None, None] * chain[:, :, None] * chain[None]
        p_values.append(stats.chisquare(seen, half * law.reshape(-1)).pvalue)
    return min(p_values)


#: Two-sided probability of 5 standard errors.
FIVE_SIGMA = 5.7e-7

CONFIGS = {
    "global": gr.SpeculativeConfig(
        num_drafts=2, draft_length=2, temperature=TEMPERATURE
    ),
    "recursive": gr.SpeculativeConfig(
        num_drafts=3,
        draft_length=2,
        temperature=TEMPERATURE,
        verifier=RecursiveRejection(),
    ),
    "single": gr.SpeculativeConfig(
        num_drafts=1, draft_length=3, temperature=TEMPERATURE, verifier=SingleDraft()
    ),
    "branching": gr.SpeculativeConfig(
        tree=gr.TokenTree((1, 2, 2)), temperature=TEMPERATURE
    ),
    "plain": gr.SpeculativeConfig(draft_length=0, temperature=TEMPERATURE),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_joint_law_of_three_tokens(pair, name):
    assert worst_chi_square_p_value(pair, CONFIGS[name]) > 1e-3


@pytest.fixture
def mutation(monkeypatch):
    """Patches the loop; what was compiled before or with it is forgotten."""
    decoding._generate.clear_cache()
    yield monkeypatch
    decoding._generate.clear_cache()


def test_mutant_one_key_for_draft_and_verification(pair, mutation):
    def reused(keys, step):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return keys, keys

    config = CONFIGS["single"]
    mutation.setattr(decoding, "step_keys", reused)
    with pytest.raises(jax.errors.KeyReuseError):
        worst_chi_square_p_value(pair, config)
    decoding._generate.clear_cache()
    with jax.debug_key_reuse(False):
        assert worst_chi_square_p_value(pair, config) < FIVE_SIGMA


def test_mutant_residual_from_the_target(pair):
    config = dataclasses.replace(CONFIGS["global"], verifier=ResidualFromTarget())
    assert worst_chi_square_p_value(pair, config) < FIVE_SIGMA


def test_mutant_bonus_token_without_temperature(pair, mutation):
    honest = decoding.walk_tree

    def cold_bonus(key, tree, tokens, p, *rest):
        leaves = p[tree.num_internal :] ** TEMPERATURE
        leaves = leaves / leaves.sum(1, keepdims=True)
        p = jnp.concatenate([p[: tree.num_internal], leaves])
        return honest(key, tree, tokens, p, *rest)

    mutation.setattr(decoding, "walk_tree", cold_bonus)
    assert worst_chi_square_p_value(pair, CONFIGS["global"]) < FIVE_SIGMA


def test_mutant_draft_law_that_was_not_sampled(pair, mutation):
    honest = decoding.plan_tree

    def flat_q(tree, tokens, p, q, *rest):
        return honest(tree, tokens, p, jnp.full_like(q, 1 / q.shape[-1]), *rest)

    mutation.setattr(decoding, "plan_tree", flat_q)
    assert worst_chi_square_p_value(pair, CONFIGS["global"]) < FIVE_SIGMA


def greedy(table: np.ndarray, start: int, length: int) -> list[int]:
    text = [start]
    for _ in range(length):
        text.append(int(table[text[-1]].argmax()))
    return text[1:]


@pytest.mark.parametrize("verifier", [GlobalResolution(), RecursiveRejection()])
def test_one_hot_target_leaves_no_choice(verifier):
    table = np.eye(6)[[3, 0, 5, 1, 2, 4]]
    target = gr.testing.markov_model(jnp.asarray(table, jnp.float32))
    draft = gr.testing.markov_model(jnp.asarray(transition(2, 6), jnp.float32))
    config = gr.SpeculativeConfig(num_drafts=3, draft_length=3, verifier=verifier)
    prompts, lengths = jnp.array([[0, 0], [1, 4], [5, 2]]), jnp.array([1, 2, 2])
    result = gr.generate(
        jax.random.key(0), target, draft, prompts, lengths, config, max_new_tokens=17
    )
    for row, start in enumerate((0, 4, 2)):
        assert result.tokens[row].tolist() == greedy(table, start, 17)


def test_zero_temperature_is_greedy_decoding_on_the_embedded_pair():
    target, draft = models.load("embedded"), models.load("embedded-draft")
    texts = ["ROMEO:", "First Citizen:\nBefore we proceed", "The king"]
    ids = [target.tokenizer.encode(text) for text in texts]
    width = max(map(len, ids))
    prompts = jnp.array([row + [0] * (width - len(row)) for row in ids])
    lengths = jnp.array([len(row) for row in ids])
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=3, temperature=0.0)
    key = jax.random.key(0)
    fast = gr.generate(key, target, draft, prompts, lengths, config, 40)
    plain = gr.generate(key, target, None, prompts, lengths, config, 40)
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert int(fast.metrics.num_spec_steps.max()) < 40
    assert int(plain.metrics.num_spec_steps.min()) == 40


@pytest.mark.parametrize("cap", [1, 2, 5, 9])
def test_stops_at_eos_or_cap_and_nothing_leaks(cap):
    """Greedy text 3 1 0 3 1 0 ... or 4 2 5 4 ...: the cut is known in advance."""
    table = np.eye(6)[[3, 0, 5, 1, 2, 4]]
    model = gr.testing.markov_model(jnp.asarray(table, jnp.float32))
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=3)
    prompts, lengths = jnp.array([[0], [5]]), jnp.array([1, 1])
    # One token, or several, of which the first that is met ends a row.
    for eos in (None, 0, 2, 4, 5, (1, 2), (5, 0)):
        ends = np.atleast_1d(-1 if eos is None else eos).tolist()
        result = gr.generate(
            jax.random.key(0), model, model, prompts, lengths, config, cap, eos_id=eos
        )
        for row, start in enumerate((0, 5)):
            text = greedy(table, start, cap)
            met = [i for i, token in enumerate(text) if token in ends]
            text = text[: met[0] + 1] if met else text
            assert int(result.lengths[row]) == len(text)
            assert result.tokens[row].tolist() == text + [-1] * (cap - len(text))
            assert not result.from_draft[row, len(text) :].any()


def test_a_row_does_not_depend_on_its_batch(pair):
    prompts = jnp.array([[0, 1, 2], [2, 0, 0], [1, 1, 0]])
    lengths = jnp.array([3, 1, 2])
    keys = jax.random.split(jax.random.key(5), 3)
    config = CONFIGS["global"]
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
    prompts, config = jnp.array([[0, 1, 2]]), CONFIGS["global"]
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
            max_new_tokens=12,
        )

    chex.assert_trees_all_equal(run(jitted, 1, 3).tokens, run(gr.generate, 1, 3).tokens)
    compiled = decoding._generate._cache_size()
    run(gr.generate, 2, 1)
    assert decoding._generate._cache_size() == compiled
    # An equal config is the same program.
    same = dataclasses.replace(config)
    gr.generate(jax.random.key(3), *pair, prompts, jnp.array([2]), same, 12)
    assert decoding._generate._cache_size() == compiled


def test_equal_models_accept_every_draft(pair):
    target, _ = pair
    config = CONFIGS["global"]
    prompts, lengths = jnp.zeros((64, 1), jnp.int32), jnp.ones(64, jnp.int32)
    result = gr.generate(
        jax.random.key(0), target, target, prompts, lengths, config, 12
    )
    # Two accepted tokens and a bonus each step, up to the solver's gap.
    lengths = result.metrics.mean_acceptance_length
    assert float(lengths.mean()) > 2.99
    np.testing.assert_allclose(result.metrics.optimal_acceptance_rate, 1, atol=1e-5)


def test_metrics_add_up(pair):
    prompts, lengths = jnp.zeros((200, 1), jnp.int32), jnp.ones(200, jnp.int32)
    config = CONFIGS["global"]
    result = gr.generate(jax.random.key(0), *pair, prompts, lengths, config, 31)
    m = result.metrics
    np.testing.assert_array_equal(m.acceptance_histogram.sum(1), m.num_spec_steps)
    weighted = m.acceptance_histogram @ jnp.arange(3)
    np.testing.assert_array_equal(weighted, m.num_accepted_draft_tokens)
    np.testing.assert_array_equal(m.num_draft_tokens, 4 * m.num_spec_steps)
    assert np.all(np.asarray(m.num_spec_steps + m.num_accepted_draft_tokens) >= 31)
    np.testing.assert_allclose(
        m.mean_acceptance_length - 1, m.per_position_acceptance_rate.sum(1), rtol=1e-5
    )
    # The optimal rule accepts as often as the optimum says: 5 standard errors.
    reached = float(m.reached_per_position.sum())
    rate = float(m.num_accepted_draft_tokens.sum()) / reached
    optimum = float(m.optimum_sum.sum()) / reached
    assert abs(rate - optimum) <= 5 * np.sqrt(optimum * (1 - optimum) / reached)


def test_bad_requests_are_named(pair):
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
    with pytest.raises(ValueError, match="so IID is allowed, got WithoutReplacement"):
        gr.SpeculativeConfig(law=gr.WithoutReplacement)
    with pytest.raises(ValueError, match="num_drafts: must be at least 1, got 0"):
        gr.SpeculativeConfig(num_drafts=0)
    with pytest.raises(ValueError, match="SingleDraft verifies 1 draft, got 4"):
        gr.SpeculativeConfig(verifier=SingleDraft())
    with pytest.raises(ValueError, match="verifier: TruncatedGlobalResolution needs"):
        gr.SpeculativeConfig(verifier=gr.verifiers.TruncatedGlobalResolution())
    with pytest.raises(ValueError, match="temperature: must be 0 or more"):
        gr.SpeculativeConfig(temperature=-0.1)
