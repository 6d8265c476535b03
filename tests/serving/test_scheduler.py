"""Rows that have ended are replaced, and no text depends on which others there are."""

import dataclasses

import jax
import numpy as np
import pytest
from summing import LETTERS, VOCAB, summing_model

import globalres_jax as gr
from globalres_jax.commands.seeds import key_of_seed
from globalres_jax.decoding.metrics import plain_numbers, total
from globalres_jax.serving import rows as rows_of

TARGET, DRAFT = summing_model(0, LETTERS), summing_model(1)
CONFIG = gr.SpeculativeConfig(
    num_drafts=1,
    draft_length=2,
    verifier=gr.verifiers.SingleDraft(),
    cache_length=64,
)
COUNT, ENDS = 40, (5,)
PROGRAMS = (rows_of._read, rows_of._empty, rows_of._replace, rows_of._advance)


def make_requests():
    """Prompts and caps of random length; every fifth with a filter of its own."""
    rng = np.random.default_rng(0)
    made = []
    for seed in range(COUNT):
        options = gr.SamplingOptions(temperature=0.5 + 0.05 * seed)
        if seed % 5 == 0:
            options = gr.SamplingOptions(temperature=1.2, top_k=4 - seed % 2)
        made.append(
            gr.GenerationRequest(
                prompt=rng.integers(0, VOCAB, rng.integers(1, 33)),
                max_new_tokens=int(rng.integers(1, 29)),
                seed=seed,
                options=options,
                eos_id=ENDS if seed % 2 else (),
                name=("request", seed),
            )
        )
    return made


REQUESTS = make_requests()


def alone(requests):
    """What `generate` writes for requests that have a temperature alone."""
    width = max(len(request.prompt) for request in requests)
    temperatures = [request.options.temperature for request in requests]
    return gr.generate(
        jax.numpy.stack([request.row_key for request in requests]),
        TARGET,
        DRAFT,
        np.stack([np.pad(x.prompt, (0, width - len(x.prompt))) for x in requests]),
        np.asarray([len(request.prompt) for request in requests]),
        CONFIG,
        [request.max_new_tokens for request in requests],
        np.asarray([[*request.eos_id, -1][:1] for request in requests]),
        gr.SamplingOptions(temperature=np.asarray(temperatures, np.float32)),
    )


def in_order(completions):
    found = {completion.index: completion for completion in completions}
    return [found[index] for index in range(len(found))]


@pytest.fixture(scope="module")
def answers():
    """All of them through three rows, by index; each was answered once."""
    done = list(gr.generate_many(TARGET, DRAFT, REQUESTS, config=CONFIG, batch=3))
    assert sorted(x.index for x in done) == list(range(COUNT))
    assert [x.index for x in done] != list(range(COUNT))  # as they end
    return in_order(done)


def test_the_texts_of_each_request_alone(answers):
    some = [i for i in range(COUNT) if i % 5]
    whole = alone([REQUESTS[i] for i in some])
    for row, i in enumerate(some):
        found, wanted = answers[i].result, whole.row(row)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        assert answers[i].finish_reason == wanted.finish_reasons[0]
        assert answers[i].request is REQUESTS[i] and answers[i].error is None
        assert answers[i].text == LETTERS.decode_continuation((), wanted.tokens[0])
        assert len(answers[i].tokens) == found.lengths[0] == found.tokens.shape[1]
    reasons = [answer.finish_reason for answer in answers]
    assert {"stop", "length"} == set(reasons)


def test_whatever_the_order_and_nothing_compiles_again(answers):
    order = np.random.default_rng(1).permutation(COUNT)
    before = [program._cache_size() for program in PROGRAMS]
    shuffled = (REQUESTS[i] for i in order)  # one by one, read when there is room
    found = in_order(
        gr.generate_many(
            TARGET, DRAFT, shuffled, config=CONFIG, batch=3, steps_per_look=2
        )
    )
    for place, i in enumerate(order):
        np.testing.assert_array_equal(found[place].tokens, answers[i].tokens)
    assert [program._cache_size() for program in PROGRAMS] == before


def test_requests_are_read_as_rows_become_free(answers):
    read = []

    def one_by_one():
        for i in (1, 2, 3, 4, 6, 7, 8, 9):
            read.append(i)
            yield REQUESTS[i]

    done = gr.generate_many(TARGET, DRAFT, one_by_one(), config=CONFIG, batch=3)
    assert read == []
    first = next(done)
    assert read == [1, 2, 3]
    np.testing.assert_array_equal(first.tokens, answers[read[first.index]].tokens)
    done.close()


def test_stop_strings_end_texts_where_they_say_them(answers):
    some = [i for i in range(COUNT) if i % 5 and len(answers[i].text) > 6]
    asked, wanted = [], []
    for place, i in enumerate(some):
        text = answers[i].text
        string = text[3:5]
        end = text.find(string) + 2
        include = bool(place % 2)
        changes = {"stop": ["xyz", string], "include_stop": include}
        if place % 3:
            asked.append(dataclasses.replace(REQUESTS[i], **changes))
            wanted.append((end, text[: end if include else end - 2]))
        else:
            asked.append(REQUESTS[i])
            wanted.append((len(text), text))
    found = in_order(gr.generate_many(TARGET, DRAFT, asked, config=CONFIG, batch=3))
    for place, i in enumerate(some):
        length, text = wanted[place]
        np.testing.assert_array_equal(found[place].tokens, answers[i].tokens[:length])
        assert found[place].text == text
        assert found[place].result.from_draft.shape == (1, length)
        stops = place % 3 or answers[i].finish_reason == "stop"
        assert (found[place].finish_reason == "stop") == bool(stops)


def test_what_is_refused_is_named_and_the_others_go_on(answers):
    def like(**changes):
        return dataclasses.replace(REQUESTS[1], **changes)

    bad = [
        (
            like(prompt=[1] * 50, max_new_tokens=20),
            "cache_length: 50 prompt tokens, 20",
        ),
        (like(prompt=[1] * 99), "cache_length: a prompt of 99 tokens does not fit 64"),
        (like(prompt=[]), "prompt: empty"),
        (like(prompt=[8]), r"prompts: tokens must lie in \[0, 8\), got 8..8"),
        (like(prompt=[[1]]), "prompt: expected a text or its tokens"),
        (like(prompt="xyz"), "text: 'xyz' has other letters"),
        (like(max_new_tokens=0), "max_new_tokens: must be at least 1, got 0"),
        (like(stop=""), "stop: an empty string"),
        (like(eos_id="x"), "eos_id: expected a token, or several"),
    ]
    requests = [x for request, _ in bad for x in (request, REQUESTS[1])]
    found = in_order(gr.generate_many(TARGET, DRAFT, requests, config=CONFIG, batch=3))
    for place, (request, message) in enumerate(bad):
        refused, other = found[2 * place], found[2 * place + 1]
        with pytest.raises(ValueError, match=message):
            raise ValueError(refused.error)
        assert refused.request is request and refused.finish_reason == "error"
        assert refused.result is None and not refused.tokens.size
        assert refused.metrics == {} and refused.text is None
        np.testing.assert_array_equal(other.tokens, answers[1].tokens)


def test_bad_arguments_are_refused_before_the_first_result():
    def ask(target=TARGET, draft=DRAFT, requests=REQUESTS, **changes):
        return gr.generate_many(target, draft, requests, **{"config": CONFIG} | changes)

    with pytest.raises(ValueError, match="batch: must be at least 1, got 0"):
        ask(batch=0)
    with pytest.raises(ValueError, match="steps_per_look: must be at least 1, got 0"):
        ask(steps_per_look=0)
    with pytest.raises(TypeError, match="config: expected a SpeculativeConfig"):
        ask(config=3)
    with pytest.raises(TypeError, match="target: expected a Model"):
        ask(target="embedded")
    with pytest.raises(TypeError, match="draft: expected a Model"):
        ask(draft="embedded")
    with pytest.raises(TypeError, match="requests: expected an iterable"):
        ask(requests=7)
    with pytest.raises(TypeError, match=r"requests\[0\]: expected a GenerationReq"):
        list(ask(requests=["a prompt"]))
    free = dataclasses.replace(CONFIG, cache_length=None)
    with pytest.raises(ValueError, match="cache_length: None is chosen by looking at"):
        ask(config=free, requests=iter(REQUESTS))
    assert list(ask(requests=[])) == []
    assert list(ask(config=free, requests=[])) == []
    for changes, message in (
        ({"seed": 2**64}, "seed: must lie in"),
        ({"sample": -1}, "sample: must be 0 or more"),
        ({"key": "x"}, "key: expected a key"),
        ({"options": 0.7}, "options: expected SamplingOptions"),
        ({"seed": "x"}, "seed: expected an integer"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            gr.GenerationRequest(prompt="a", **changes)


def test_seeds_are_those_of_generate_and_metrics_add_up(answers):
    request = gr.GenerationRequest(prompt="abc", seed=2**40, sample=3)
    wanted = jax.random.fold_in(key_of_seed(2**40), 3)
    assert bool(request.row_key == wanted)
    metrics = answers[1].metrics
    result = answers[1].result.metrics
    assert metrics["acceptance_histogram"] == result.acceptance_histogram[0].tolist()
    assert metrics["optimal_acceptance_rate"] is None
    counts = total([answer.result.metrics for answer in answers])
    steps = sum(answer.metrics["num_spec_steps"] for answer in answers)
    accepted = sum(answer.metrics["num_accepted_draft_tokens"] for answer in answers)
    summed = plain_numbers(counts)
    assert summed["num_spec_steps"] == steps
    assert summed["mean_acceptance_length"] == pytest.approx(1 + accepted / steps)
    many = counts._replace(num_draft_tokens=counts.num_draft_tokens + 2**40)
    assert plain_numbers(many)["num_draft_tokens"] > 2**40
    assert total([]) is None
