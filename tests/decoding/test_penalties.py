"""Penalties, bias and least lengths against a loop in plain numpy."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

import globalres_jax as gr
from globalres_jax.decoding import scoring
from globalres_jax.decoding.config import SampledPolicy
from globalres_jax.decoding.logit_bias import LogitBias
from globalres_jax.decoding.penalties import adjusted, count_text
from globalres_jax.testing import joint_law, step_law
from globalres_jax.tree_verifiers import TopDown

V, ROWS = 4, 1500
#: Logits after each token, of both signs.
TARGET, DRAFT = (np.random.default_rng(i).normal(size=(V, V)) for i in (0, 1))
NOTHING = {"temperature": 1.0, "repeat": 1.0, "presence": 0.0, "frequency": 0.0}
NOTHING |= {"least": 0, "bias": {}, "ends": (), "prompt": (1, 0), "cap": 3}
#: What differs from nothing, for rows whose texts are counted.
KINDS = [
    {"repeat": 1.8, "prompt": (2, 0)},
    {"presence": 1.5, "frequency": 0.7, "prompt": (0,)},
    {"presence": -0.8, "repeat": 0.6, "temperature": 0.7},
    {"bias": {1: 1.5, 3: -np.inf}, "frequency": 1.0, "ends": (2,), "least": 2},
]
#: Rows that leave no choice, since their temperature is 0.
GRID = [
    {"ends": ends, "cap": cap, "least": least, "temperature": 0.0, **changes}
    for ends, cap, least, changes in itertools.product(
        [(), (0,), (1, 3), (0, 2)],
        (1, 3, 8),
        (0, 1, 3, 8),
        [{"repeat": 2.0}, {"frequency": 0.9}, {"bias": {0: -1.0}, "prompt": (3, 3, 2)}],
    )
    if least <= cap
]
KINDS, GRID = ([NOTHING | changes for changes in rows] for rows in (KINDS, GRID))
CONFIG = gr.SpeculativeConfig(
    tree=gr.tree.from_parents([-1, 0, 0, 1, 1, 2]),
    verifier=gr.verifiers.RecursiveRejection(),
    log_probabilities=True,
)


def model(logits):
    bare = gr.testing.markov_model(jnp.full((V, V), 1 / V))
    return dataclasses.replace(bare, params=jnp.asarray(logits, jnp.float32))


def asked(logits, prompt, output, row):
    """The plain loop: the logits [V] of one place, after all but the temperature."""
    logits = logits.copy()
    for token in range(V):
        logits[token] += row["bias"].get(token, 0)
        if token in (*prompt, *output):
            by = row["repeat"]
            logits[token] *= 1 / by if logits[token] > 0 else by
        logits[token] -= row["frequency"] * output.count(token)
        logits[token] -= row["presence"] * (token in output)
        if token in row["ends"] and len(output) < row["least"]:
            logits[token] = -np.inf
    return logits


def probabilities(row, output=()):
    """The distribution [V] of the next token of a row."""
    last = (*row["prompt"], *output)[-1]
    logits = asked(TARGET[last], row["prompt"], list(output), row)
    if row["temperature"] == 0:
        return np.eye(V)[logits.argmax()]
    weights = np.exp((logits - logits.max()) / row["temperature"])
    return weights / weights.sum()


def request(rows):
    """Prompts, lengths, caps, ends and options of rows."""
    prompts = np.zeros((len(rows), 3), int)
    ends = np.full((len(rows), 2), -1)
    for i, row in enumerate(rows):
        prompts[i, : len(row["prompt"])] = row["prompt"]
        ends[i, : len(row["ends"])] = row["ends"]

    def of(name):
        return np.array([row[name] for row in rows])

    options = gr.SamplingOptions(
        temperature=of("temperature"),
        repetition_penalty=of("repeat"),
        presence_penalty=of("presence"),
        frequency_penalty=of("frequency"),
        min_new_tokens=of("least"),
        logit_bias=[row["bias"] for row in rows],
    )
    lengths = np.array([len(row["prompt"]) for row in rows])
    return prompts, lengths, of("cap"), ends, options


def run(rows, keys=None, function=gr.generate, config=CONFIG, **changes):
    prompts, lengths, caps, ends, options = request(rows)
    keys = jax.random.key(0) if keys is None else keys
    rows = prompts, lengths, config, caps, ends, options
    return function(keys, model(TARGET), model(DRAFT), *rows, **changes)


def p_values(result):
    """Of the texts of each of `KINDS`, which come first, `ROWS` rows of each."""
    for kind, row in enumerate(KINDS):
        law, texts = {}, list(itertools.product(range(V), repeat=3))
        for text in texts:
            # What comes after an end is not written.
            ended = [i + 1 for i, token in enumerate(text) if token in row["ends"]]
            text, chance = text[: ended[0] if ended else 3], 1.0
            for place, token in enumerate(text):
                chance *= probabilities(row, text[:place])[token]
            law[text] = chance
        found = dict.fromkeys(law, 0)
        for i in range(kind * ROWS, (kind + 1) * ROWS):
            length = int(result.lengths[i])
            found[tuple(result.tokens[i, :length].tolist())] += 1
        seen, wanted = (np.array(list(x.values())) for x in (found, law))
        assert not seen[wanted == 0].any()
        yield stats.chisquare(seen[wanted > 0], ROWS * wanted[wanted > 0]).pvalue


EVERY = [row for row in KINDS for _ in range(ROWS)] + GRID


@pytest.fixture(scope="module")
def result():
    return jax.tree.map(np.asarray, run(EVERY))


def test_joint_law_of_three_tokens_for_every_option(result):
    assert min(p_values(result)) > 1e-3
    drafted = result.from_draft[: len(KINDS) * ROWS].mean()
    assert 0.2 < drafted < 0.9


def test_texts_end_where_they_must_and_not_before(result):
    """End tokens, caps and least lengths, where nothing is left to chance."""
    reasons = set()
    for i, row in enumerate(GRID, start=len(KINDS) * ROWS):
        text = []
        while len(text) < row["cap"] and not (text and text[-1] in row["ends"]):
            text.append(int(probabilities(row, text).argmax()))
        assert result.lengths[i] == len(text) >= row["least"]
        assert result.tokens[i].tolist() == text + [-1] * (8 - len(text))
        stops = bool(text[-1] in row["ends"])
        assert result.finish_reasons[i] == ("stop" if stops else "length")
        reasons.add((stops, len(text) > row["least"]))
        assert not result.log_probabilities[i, len(text) :].any()
    assert len(reasons) == 4 - 1 or len(reasons) == 4


def test_log_probabilities_before_and_after(result):
    for i in range(0, len(EVERY), 97):
        row, text = EVERY[i], result.tokens[i, : result.lengths[i]].tolist()
        for place, token in enumerate(text):
            law = probabilities(row, text[:place])
            last = (*row["prompt"], *text[:place])[-1]
            own = log_softmax(TARGET[last])[token]
            assert abs(result.log_probabilities[i, place] - own) < 1e-5
            found = result.sampling_log_probabilities[i, place]
            assert abs(found - np.log(law[token])) < 1e-5


def test_a_row_does_not_depend_on_its_batch_nor_on_chunks(result):
    for i in (1, 2 * ROWS, 3 * ROWS + 5, len(EVERY) - 1):
        key = jax.random.fold_in(jax.random.key(0), i)[None]
        *_, last = run(EVERY[i : i + 1], key, gr.stream, steps_per_chunk=2)
        length = result.lengths[i]
        alone = jax.tree.map(np.asarray, last.result)
        assert alone.lengths[0] == length
        tokens = alone.tokens[0], result.tokens[i]
        np.testing.assert_array_equal(*(x[:length] for x in tokens))
        # On an accelerator a batch of another size may add in another order.
        scores = [x.sampling_log_probabilities for x in (alone, result)]
        np.testing.assert_allclose(scores[0][0, :length], scores[1][i, :length], 1e-6)


def test_mutant_counts_that_forget_the_path(monkeypatch):
    honest = scoring.paths_of
    monkeypatch.setattr(
        scoring, "paths_of", lambda *args: jnp.full_like(honest(*args), -1)
    )
    config = gr.SpeculativeConfig(
        tree=gr.tree.chain(2), verifier=gr.verifiers.SingleDraft(), pad_id=-2
    )
    result = jax.tree.map(np.asarray, run(EVERY, config=config))
    assert min(p_values(result)) < 5.7e-7


TEXTS = [list(itertools.product(range(V), repeat=depth)) for depth in range(4)]


@pytest.mark.sweep
def test_the_law_of_a_step_by_enumeration(float64):
    """Of the target's law the loop decides, whatever the draft is shown."""
    row = NOTHING | {"repeat": 1.7, "presence": 0.4, "frequency": 0.9, "prompt": (2, 0)}
    row |= {"bias": {1: 0.5}, "ends": (3,), "least": 2}
    *_, ends, options = request([row])
    options, ends = options.for_rows(1), jnp.asarray(ends)
    counts = count_text(options, jnp.array([row["prompt"]]), jnp.array([2]), V)
    policy = SampledPolicy(CONFIG, options, V, counts, ends)
    tree = gr.tree.branching((2, 1))

    def after(table, depth):
        """Logits [1, V^d, V] after all texts of d tokens, and the texts."""
        last = np.array([text[-1] if text else 0 for text in TEXTS[depth]])
        texts = np.array([(*text, *[-1] * (2 - depth)) for text in TEXTS[depth]])
        return jnp.asarray(table[last])[None], jnp.asarray(texts)[None]

    @jax.jit
    def law_of(logits, paths):
        logits = adjusted(logits, paths, options, counts, ends)
        return options.to_probabilities(logits)[0]

    def draft(level, num_drafts, forgets):
        logits, paths = after(DRAFT, level)
        make = jax.jit(policy.law, static_argnums=(1, 2))
        laws = make(logits, level, num_drafts, None, None if forgets else paths)
        return jax.tree.map(lambda x: x[0], laws)

    tables = [law_of(*after(TARGET, depth)) for depth in range(3)]
    wanted = [
        np.prod([probabilities(row, text[:i])[text[i]] for i in range(3)])
        for text in TEXTS[3]
    ]
    np.testing.assert_allclose(joint_law(tables), wanted, rtol=0, atol=1e-6)
    for forgets in (False, True):
        of_drafts = functools.partial(draft, forgets=forgets)
        law = step_law(TopDown(CONFIG.verifier), tree, tables, of_drafts)
        np.testing.assert_allclose(law, joint_law(tables), rtol=0, atol=1e-9)


INF = float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty: must be above 0 and finite"),
        ({"repetition_penalty": -1.5}, "repetition_penalty: must be above 0"),
        ({"repetition_penalty": np.nan}, "repetition_penalty: must be above 0.*nan"),
        ({"repetition_penalty": 1e300}, "repetition_penalty: must be above 0"),
        ({"repetition_penalty": "2"}, "repetition_penalty: expected a number"),
        ({"presence_penalty": np.nan}, "presence_penalty: must be finite.*got nan"),
        ({"frequency_penalty": INF}, "frequency_penalty: must be finite.*got inf"),
        ({"min_new_tokens": -1}, "min_new_tokens: must (be 0 or more|lie in)"),
        ({"min_new_tokens": 10**12}, "min_new_tokens: must (be at most|lie in)"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: must be 0 or more, got -1"),
        ({"logit_bias": {1: np.nan}}, "logit_bias: must be a number, or -inf.*nan"),
        ({"logit_bias": {1: INF}}, "logit_bias: must be a number, or -inf.*inf"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias: expected an integer, got '1'"),
        ({"logit_bias": {1: "2"}}, "logit_bias: expected a number, got '2'"),
        ({"logit_bias": 5}, "logit_bias: expected a dict"),
        ({"logit_bias": "5"}, "logit_bias: expected a dict"),
    ],
)
def test_options_out_of_range(options, message):
    for make in (gr.SamplingOptions, gr.SpeculativeConfig):
        with pytest.raises((TypeError, ValueError), match=message):
            make(**options)


def test_options_that_contradict_the_request():
    def refuses(message, **options):
        made = gr.SamplingOptions(**options)
        prompts, lengths, *_ = request(KINDS[:2])
        rows = prompts, lengths, CONFIG, [3, 9], ()
        with pytest.raises((TypeError, ValueError), match=message):
            gr.generate(
                jax.random.key(0), model(TARGET), model(DRAFT), *rows, options=made
            )

    refuses("min_new_tokens: 4 are more than max_new_tokens, 3", min_new_tokens=4)
    both = np.array([3, 10])
    refuses("min_new_tokens: 10 are more than max_new_tokens, 9", min_new_tokens=both)
    refuses("min_new_tokens: expected an integer", min_new_tokens=2.5)
    three = np.ones(3)
    refuses("presence_penalty: expected a number or 2", presence_penalty=three)
    refuses("logit_bias: token 4 is none, allowed are 0 to 3", logit_bias={4: 1.0})
    refuses("logit_bias: expected one for each of 2 rows, got 1", logit_bias=[{1: 1}])
    arrays = LogitBias(np.array([1, 2]), np.ones(3))
    refuses("logit_bias: expected tokens and values of one shape", logit_bias=arrays)
    for tokens, message in (([-2], "token -2 is none"), ([0.5], "expected integer t")):
        with pytest.raises((TypeError, ValueError), match=f"logit_bias: {message}"):
            gr.SamplingOptions(logit_bias=LogitBias(np.array(tokens), np.ones(1)))


def test_configs_are_alike_where_options_are():
    """A dict in any order; and none of it fixes the program."""
    made = [gr.SpeculativeConfig(logit_bias=x) for x in ({1: 2, 0: 1.0}, {0: 1, 1: 2})]
    assert made[0] == made[1] and hash(made[0]) == hash(made[1])
    assert dataclasses.replace(made[0], min_new_tokens=2).logit_bias == ((0, 1), (1, 2))
    assert made[0].program() == gr.SpeculativeConfig().program()
    assert gr.SpeculativeConfig(logit_bias={}).sampling.logit_bias is None
