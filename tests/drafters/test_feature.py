"""Drafts that read the target's features: exact, and fed as they were trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draft_cases import VOCAB_SIZE, draft, target
from scipy.special import log_softmax
from scipy.stats import chisquare

import globalres_jax as gr
from globalres_jax import cache
from globalres_jax.decoding import step
from globalres_jax.decoding.state import Request, first_state
from globalres_jax.models import drafts
from globalres_jax.models.decoder import DecoderFn

STEPS = 4
PROMPTS, LENGTHS = np.array([[1, 0, 3, 2], [2, 4, 0, 0]], np.int32), np.array([4, 2])
RULE = gr.tree_verifiers.TopDown(gr.verifiers.RecursiveRejection())
#: Compiles fast, and accepts what the target would have said anyway.
CHEAP = gr.tree_verifiers.TopDown(gr.verifiers.TargetSample())
TREE = gr.tree.from_parents([-1, 0, 0, 1])


def config_of(tree, rule=RULE) -> gr.SpeculativeConfig:
    return gr.SpeculativeConfig(tree=tree, verifier=rule)


def assert_greedy(rows, prompts, lengths):
    """Each of `rows [R, T]` is the target's likeliest text after its prompt."""
    size = rows.shape[1]
    texts = np.zeros((len(rows), prompts.shape[1] + size), np.int32)
    for text, prompt, count, row in zip(texts, prompts, lengths, rows, strict=True):
        text[: count + size] = [*prompt[:count], *row]
    likeliest = np.asarray(score(target(), texts)).argmax(-1)
    for found, count, row in zip(likeliest, lengths, rows, strict=True):
        np.testing.assert_array_equal(row, found[count - 1 : count - 1 + size])


@jax.jit
def score(model, texts):
    return model.apply.score(model.params, texts)


def law_p_value(tokens, prompt):
    """Chi-square of `tokens [R, 3]` after a prompt, against all texts of three."""
    texts = np.indices((VOCAB_SIZE,) * 3).reshape(3, -1).T
    whole = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], 1)
    logits = np.asarray(score(target(), np.pad(whole, ((0, 0), (0, 4 - len(prompt))))))
    rows = log_softmax(logits[:, len(prompt) - 1 :][:, :3].astype(float), -1)
    law = np.exp(np.take_along_axis(rows, texts[:, :, None], -1).sum((1, 2)))
    seen, wanted = np.bincount(tokens @ [25, 5, 1], minlength=125), law * len(tokens)
    order = np.argsort(wanted)
    rare = np.searchsorted(np.cumsum(wanted[order]), 20) + 1
    pooled = [np.append(x[order][rare:], x[order][:rare].sum()) for x in (seen, wanted)]
    return chisquare(*pooled, sum_check=False).pvalue


def check_text(kind, rows):
    """Greedy rows and sampled ones, of one program."""
    half = rows // 2
    prompts, lengths = np.repeat(PROMPTS, half, 0), np.repeat(LENGTHS, half)
    temperature = np.ones(rows, np.float32)
    temperature[[0, half]] = 0
    result = gr.generate(
        jax.random.key(5),
        *(target(), draft(kind)[2], prompts, lengths, config_of(TREE), 6),
        options=gr.SamplingOptions(temperature=temperature),
    )
    accepted = np.asarray(result.metrics.num_accepted_draft_tokens)
    assert accepted[[0, half]].sum() > 0 and accepted.sum() > rows
    tokens = np.asarray(result.tokens)
    assert_greedy(tokens[[0, half]], PROMPTS, LENGTHS)
    for first, prompt, size in zip((1, half + 1), PROMPTS, LENGTHS, strict=True):
        assert law_p_value(tokens[first:][: half - 1, :3], prompt[:size]) > 1e-4


@pytest.mark.sweep
@pytest.mark.parametrize("kind", drafts.KINDS)
def test_text_is_the_target_s(kind):
    check_text(kind, 3000)


@pytest.mark.sweep
def test_a_batch_is_its_rows_and_a_stream_its_text():
    def spoken(call, rows=slice(None)):
        key = jax.random.split(jax.random.key(7), 2)[rows]
        arguments = PROMPTS[rows], LENGTHS[rows], config_of(TREE), 12
        return call(key, target(), draft()[2], *arguments)

    together = spoken(gr.generate)
    for row in range(2):
        alone = spoken(gr.generate, slice(row, row + 1))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    *_, last = spoken(gr.stream)
    np.testing.assert_array_equal(last.result.tokens, together.tokens)


@pytest.mark.sweep
def test_a_tree_can_be_chosen():
    config = gr.SpeculativeConfig(tree="auto")
    chosen = gr.plan(target(), draft()[2], PROMPTS, LENGTHS, config, 12)
    assert chosen.config.token_tree.depth >= 0 and "measured in" in str(chosen)


def test_what_is_drafted_from_is_what_was_trained(monkeypatch):
    """The target's features in the text, the draft's own below the root.

    Row 0 ends early: its state then stays as it is. Row 1 is greedy.
    """
    config, params, drafter = draft()
    logits, tokens = [], []
    law, propose = step.SampledPolicy.law, step.propose

    def recorded_law(policy, rows, *arguments, **options):
        logits.append(rows)
        return law(policy, rows, *arguments, **options)

    def recorded_propose(*arguments):
        proposal, state = propose(*arguments)
        tokens.append(proposal.tokens)
        return proposal, state

    monkeypatch.setattr(cache, "CHUNK", 3)  # prompts are read in two pieces
    monkeypatch.setattr(step.SampledPolicy, "law", recorded_law)
    monkeypatch.setattr(step, "propose", recorded_propose)
    options, ends = gr.SamplingOptions(temperature=[4.0, 0.0]), jnp.full((2, 1), -1)
    options = options.for_rows(2)
    # Two children of the root, one of the second, and one of that.
    shape = config_of(gr.tree.from_parents([-1, 0, 0, 2, 3]), CHEAP)
    request = Request(target(), drafter, options, ends, shape)

    @jax.jit
    def begin():
        keys, budget = jax.random.split(jax.random.key(1), 2), jnp.array([3, 20])
        return first_state(request, keys, PROMPTS, LENGTHS, budget, 40)

    @jax.jit
    def advance(state):
        state, emitted, _ = step.decode_step(state, request)
        return state, emitted, tokens[-1], [x[:, 0] for x in logits[-3:]]

    rows = np.arange(2)

    @jax.jit
    def trained(texts, counts):
        """Draft logits after the first `counts` tokens, and after one and two more.

        Where it goes on from itself, and by the target's features alone; and the
        likeliest tokens by the target everywhere.
        """
        features, _ = drafts.target_features(target(), texts)
        likeliest = drafts.head_logits(target(), features, jnp.arange(5)).argmax(-1)
        found, alone = [], None
        for last in (counts - 1, counts, counts + 1):
            out, own = drafts.draft_outputs(params, config, target(), texts, features)
            alone = out if alone is None else alone
            found.append((out[rows, last], alone[rows, last]))
            features = features.at[rows, last].set(own[rows, last])
        return *zip(*found, strict=True), likeliest

    state, texts = begin(), np.zeros((2, 4 + 4 * STEPS + 2), np.int32)
    texts[:, :4], counts, accepted = PROMPTS, np.array(LENGTHS), 0
    for _ in range(STEPS):
        before = state.draft
        state, emitted, drafted, found = advance(state)
        np.testing.assert_array_equal(drafted[:, 0], texts[rows, counts - 1])
        for node, beyond in ((2, 0), (3, 1)):
            texts[rows, counts + beyond] = drafted[:, node]
        wanted, otherwise, _ = trained(texts, counts)
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert np.abs(wanted[2] - otherwise[2]).max() > 1e-3
        new = np.asarray(emitted.count)
        for row in rows:
            texts[row, counts[row] :][: new[row]] = emitted.tokens[row, : new[row]]
        counts, accepted = counts + new, accepted + int((new - 1).clip(0).sum())
    assert accepted > 0 and new[0] == 0 < new[1]
    np.testing.assert_array_equal(state.draft.feature[0], before.feature[0])
    np.testing.assert_array_equal(state.draft.cache.length, counts)
    *_, likeliest = trained(texts, counts)
    greedy = slice(LENGTHS[1], counts[1])
    np.testing.assert_array_equal(texts[1, greedy], np.roll(likeliest[1], 1)[greedy])


def test_targets_that_do_not_fit_are_refused():
    _, _, drafter = draft()
    rows = PROMPTS % 3, LENGTHS, config_of(TREE)
    bare = gr.testing.markov_model(jnp.full((5, 5), 0.2))
    wide = dataclasses.replace(target().apply.config.attention, width=16)
    wide = dataclasses.replace(target().apply.config, attention=wide)
    wide = dataclasses.replace(target(), apply=DecoderFn(wide))
    other = dataclasses.replace(target(), vocab_size=3)
    for model, message in (
        (bare, "reads the target's features, and the function of this target has no"),
        (wide, "reads features of 8 numbers, and the target's have 16"),
        (other, "made for a target of 5 tokens, and this one has 3"),
    ):
        with pytest.raises(ValueError, match=message):
            gr.generate(jax.random.key(0), model, drafter, *rows)
    _, _, plain = draft("embedding")
    with pytest.raises(ValueError, match="draft: has 5 tokens, the target 3"):
        gr.generate(jax.random.key(0), other, plain, *rows)
