"""Drafts that read the target's features: exact, and fed as they were trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import globalres_jax as gr
from globalres_jax.base import Emitted, Model, NewCache
from globalres_jax.decoding.step import Request, decode_step, first_state
from globalres_jax.models import drafts
from globalres_jax.models.decoder import DecoderConfig, DecoderFn
from globalres_jax.models.initialisation import initial_parameters
from globalres_jax.models.layers import AttentionShape, Layer
from globalres_jax.models.llama import LlamaBlock
from globalres_jax.models.rope import Rope

VOCAB_SIZE, WIDTH, STEPS = 5, 8, 4
PROMPTS, LENGTHS = np.array([[1, 0, 3, 2], [2, 4, 0, 0]], np.int32), np.array([4, 2])
IDS = (4, 0, 2, 1)  # token 3 is never drafted
RULE = gr.tree_verifiers.TopDown(gr.verifiers.RecursiveRejection())
TREE = gr.tree.from_parents([-1, 0, 0, 1, 1, 2, 3])


@functools.cache
def target() -> Model:
    """One layer, and logits that differ."""
    config = DecoderConfig(
        block=LlamaBlock,
        vocab_size=VOCAB_SIZE,
        layers=(Layer(Rope()),),
        attention=AttentionShape(width=WIDTH, num_heads=2, num_kv_heads=1, head_dim=4),
        mlp_width=8,
        norm_eps=1e-6,
    )
    function = DecoderFn(config)
    params = initial_parameters(jax.random.key(3), config)
    weight = params["embedding"]["weight"]
    params["embedding"]["weight"] = weight.replace(40 * weight[...])
    return Model(params, function, NewCache(function), VOCAB_SIZE)


@functools.cache
def draft(kind="feature"):
    """(config, parameters, drafter), untrained."""
    sizes = {} if kind == "layers" else {"num_heads": 1, "mlp_width": 8}
    config = drafts.DraftConfig(kind=kind, ids=IDS, **sizes)
    params = drafts.init_draft(jax.random.key(0), config, target())
    return config, params, drafts.make_drafter(params, config, target())


def config_of(tree, **options) -> gr.SpeculativeConfig:
    return gr.SpeculativeConfig(tree=tree, verifier=RULE, **options)


def spoken(drafter, config, rows=slice(None), call=gr.generate):
    key = jax.random.split(jax.random.key(7), 2)[rows]
    arguments = target(), drafter, PROMPTS[rows], LENGTHS[rows], config, 12
    return call(key, *arguments)


@pytest.mark.parametrize("kind", drafts.KINDS)
def test_greedy_text_is_the_target_s(kind):
    config = config_of(TREE, temperature=0)
    result = spoken(draft(kind)[2], config)
    assert int(result.metrics.num_accepted_draft_tokens.sum()) > 0
    length = PROMPTS.shape[1] + 12
    score = jax.jit(target().apply.score)
    for prompt, size, row in zip(PROMPTS, LENGTHS, result.tokens, strict=True):
        text = np.zeros((1, length), np.int32)
        text[0, : size + 12] = [*prompt[:size], *np.asarray(row)]
        likeliest = np.asarray(score(target().params, text)).argmax(-1)[0]
        np.testing.assert_array_equal(row, likeliest[size - 1 : size + 11])


def test_a_batch_is_its_rows_and_a_stream_its_text():
    _, _, drafter = draft()
    config = config_of(TREE)
    together = spoken(drafter, config)
    for row in range(2):
        alone = spoken(drafter, config, slice(row, row + 1))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    chunks = list(spoken(drafter, config, call=gr.stream))
    np.testing.assert_array_equal(chunks[-1].result.tokens, together.tokens)


class Recorded:
    """A policy that keeps the logits it draws from."""

    def __init__(self, policy):
        self.policy, self.logits = policy, []
        self.vocab_size, self.maker = policy.vocab_size, policy.maker

    def law(self, logits, level, num_drafts, tokens=None):
        self.logits.append(logits)
        return self.policy.law(logits, level, num_drafts, tokens)


def test_what_is_drafted_from_is_what_was_trained():
    """The target's features in the text, the draft's own below the root."""
    config, params, drafter = draft()
    tree, capacity = gr.tree.from_parents([-1, 0, 0, 1]), 40
    options = gr.SamplingOptions().for_rows(2)
    ends = jnp.full((2, 1), -1)
    request = Request(target(), drafter, options, ends, config_of(tree))

    @jax.jit
    def begin():
        budget = jnp.full(2, 20)
        keys = jax.random.split(jax.random.key(1), 2)
        return first_state(request, keys, PROMPTS, LENGTHS, budget, capacity)

    @jax.jit
    def step(state):
        policy = Recorded(gr.decoding.config.SampledPolicy(request.config, options, 5))
        keys = jax.random.split(jax.random.key(2), 2)
        proposal, _ = drafter.propose(keys, state.draft, tree, policy)
        state, emitted, _ = decode_step(state, request)
        return state, emitted, proposal.tokens, policy.logits

    @jax.jit
    def trained(texts, features):
        return drafts.draft_outputs(params, config, target(), texts, features)

    state, texts = begin(), [list(p[:n]) for p, n in zip(PROMPTS, LENGTHS, strict=True)]
    accepted, size = 0, 4 + 3 * STEPS + 1
    for _ in range(STEPS):
        before = [list(text) for text in texts]
        state, emitted, drafted, (first, second) = step(state)
        padded = np.zeros((2, size), np.int32)
        for row, text in enumerate(before):
            assert int(drafted[row, 0]) == text[-1]
            padded[row, : len(text) + 1] = [*text, int(drafted[row, 1])]
        features, _ = drafts.target_features(target(), padded)
        wanted, own = trained(padded, features)
        for row, text in enumerate(before):
            last = len(text) - 1
            np.testing.assert_allclose(first[row, 0], wanted[row, last], atol=1e-5)
            features = features.at[row, last].set(own[row, last])
            count = int(emitted.count[row])
            texts[row] += np.asarray(emitted.tokens[row, :count]).tolist()
            accepted += count - 1
        below, _ = trained(padded, features)
        for row, text in enumerate(before):
            np.testing.assert_allclose(second[row, 0], below[row, len(text)], atol=1e-5)
            assert np.abs(below[row, len(text)] - wanted[row, len(text)]).max() > 1e-3
    assert accepted > 0


@pytest.mark.parametrize("kind", ["feature"])
def test_the_law_of_the_text_is_the_target_s(kind):
    """Three tokens after two prompts, against all texts that there can be."""
    rows, texts = 4000, np.indices((VOCAB_SIZE,) * 3).reshape(3, -1).T
    tree = gr.tree.branching((2, 1))
    prompts, lengths = np.repeat(PROMPTS, rows // 2, 0), np.repeat(LENGTHS, rows // 2)
    result = gr.generate(
        jax.random.key(5),
        target(),
        draft(kind)[2],
        prompts,
        lengths,
        config_of(tree),
        3,
    )
    assert int(result.metrics.num_accepted_draft_tokens.sum()) > rows // 4
    for part, (prompt, size) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        whole = np.concatenate([np.tile(prompt[:size], (len(texts), 1)), texts], 1)
        logits = target().apply.score(target().params, whole)[:, size - 1 : -1]
        log_p = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.asarray(texts)[:, :, None], axis=-1
        )
        law = np.exp(np.asarray(log_p, np.float64).sum((1, 2)))
        half = np.asarray(result.tokens)[part * (rows // 2) :][: rows // 2]
        seen = np.bincount(half @ [25, 5, 1], minlength=len(law))
        wanted = law / law.sum() * len(half)
        order = np.argsort(wanted)
        rare = np.searchsorted(np.cumsum(wanted[order]), 20) + 1
        pooled = [
            np.append(x[order][rare:], x[order][:rare].sum()) for x in (seen, wanted)
        ]
        assert chisquare(*pooled).pvalue > 1e-4


def test_a_row_that_has_ended_stays_as_it_is():
    _, _, drafter = draft()
    features = jnp.zeros((2, 4, WIDTH))
    state = jax.jit(drafter.start, static_argnums=2)(PROMPTS, LENGTHS, 12, features)
    emitted = Emitted(
        tokens=jnp.ones((2, 3), jnp.int32),
        count=jnp.array([0, 2]),
        node=jnp.zeros((2, 3), jnp.int32),
        from_draft=jnp.zeros((2, 3), bool),
        features=jnp.ones((2, 3, WIDTH)),
    )
    after = jax.jit(drafter.commit)(state, emitted)
    np.testing.assert_array_equal(after.cache.length, [4, 4])
    np.testing.assert_array_equal(after.root, [PROMPTS[0, 3], 1])
    np.testing.assert_array_equal(after.feature[0], state.feature[0])
    assert np.abs(after.feature[1] - state.feature[1]).max() > 0


def test_targets_that_do_not_fit_are_refused():
    _, _, drafter = draft()
    bare = gr.testing.markov_model(jnp.full((5, 5), 0.2))
    rows = PROMPTS, LENGTHS, config_of(TREE)
    for model, message in (
        (bare, "reads the target's features, and the function of this target has no"),
        (gr.testing.markov_model(jnp.full((3, 3), 1 / 3)), "draft: "),
    ):
        with pytest.raises(ValueError, match=message):
            gr.generate(jax.random.key(0), model, drafter, *rows)
    _, _, plain = draft("embedding")
    with pytest.raises(ValueError, match="draft: has 5 tokens, the target 3"):
        gr.generate(jax.random.key(0), model, plain, PROMPTS % 3, *rows[1:])
