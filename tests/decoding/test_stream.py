"""A stream writes what one call writes, chunk by chunk."""

import dataclasses

import jax
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.decoding import stream as streaming

V, CAPS = 6, [13, 29, 5]
TARGET, DRAFT = (
    gr.testing.markov_model(
        np.random.default_rng(i).dirichlet(np.full(V, 0.7), V).astype(np.float32)
    )
    for i in (0, 1)
)
CONFIG = gr.SpeculativeConfig(
    num_drafts=1,
    draft_length=2,
    verifier=gr.verifiers.SingleDraft(),
    top_log_probabilities=2,
)
PROMPTS, LENGTHS = np.array([[0, 1], [2, 0], [3, 4]]), np.array([2, 1, 2])


def request(draft=DRAFT, seed=0, ends=(5,), **changes):
    keys = jax.random.split(jax.random.key(seed), 3)
    config = dataclasses.replace(CONFIG, **changes)
    return keys, TARGET, draft, PROMPTS, LENGTHS, config, CAPS, ends


def check(chunks, whole):
    """The chunks add up to the result of one call, and each to the one before it."""
    assert not chunks[-1].running.any() and all(c.running.any() for c in chunks[:-1])
    for row, length in enumerate(np.asarray(whole.lengths)):
        parts = [chunk.tokens[row] for chunk in chunks]
        np.testing.assert_array_equal(np.concatenate(parts), whole.tokens[row, :length])
        drafted = np.concatenate([chunk.from_draft[row] for chunk in chunks])
        np.testing.assert_array_equal(drafted, whole.from_draft[row, :length])
        for count, chunk in enumerate(chunks, start=1):
            # Still there though the next chunk has written over the state.
            written = sum(map(len, parts[:count]))
            assert int(chunk.result.lengths[row]) == written
            assert bool(chunk.running[row]) == (count < len(chunks)) * bool(
                sum(map(len, parts[count:]))
            )
    jax.tree.map(np.testing.assert_array_equal, chunks[-1].result, whole)


@pytest.mark.parametrize(
    "draft",
    [
        pytest.param(DRAFT, id="model"),
        pytest.param(gr.PromptLookup(), id="lookup", marks=pytest.mark.sweep),
    ],
)
def test_the_same_as_one_call_whatever_the_chunks(draft):
    programs = streaming._start, streaming._advance
    before = [program._cache_size() for program in programs]
    for seed, steps in enumerate((1, 3, 100)):
        keys, *rest = request(draft, seed, ends=(5 if seed == 0 else -1,))
        whole = gr.generate(keys, *rest)
        chunks = list(gr.stream(keys, *rest, steps_per_chunk=steps))
        check(chunks, whole)
        assert (len(chunks) == 1) == (steps == 100)
        jax.random.key_data(keys)  # not written over
        metrics = [int(c.result.metrics.num_spec_steps.max()) for c in chunks]
        assert metrics[:-1] == [steps * (i + 1) for i in range(len(chunks) - 1)]
        assert whole.top_tokens.shape == (3, 29, 2)
    # One program to start and one for chunks.
    after = [program._cache_size() for program in programs]
    assert np.subtract(after, before).tolist() == [1, 1]


def test_compiled_beforehand_and_more_than_once():
    keys, *rest = request(seed=4)
    begin = streaming.compile_stream(keys, *rest, steps_per_chunk=2)
    whole = gr.generate(keys, *rest)
    check(list(begin()), whole)
    first = next(begin())  # and no more of it
    assert [len(tokens) >= 1 for tokens in first.tokens] == [True] * 3
    check(list(begin()), whole)


def test_bad_requests_are_refused_before_the_first_chunk():
    keys, *rest = request()
    with pytest.raises(ValueError, match="steps_per_chunk: must be at least 1, got 0"):
        gr.stream(keys, *rest, steps_per_chunk=0)
    with pytest.raises(ValueError, match="max_new_tokens: must be at least 1, got 0"):
        gr.stream(keys, *rest[:5], max_new_tokens=0)
    with pytest.raises(ValueError, match="stream: `jit` or `vmap` traces its argum"):
        jax.jit(lambda keys: gr.stream(keys, *rest))(keys)
