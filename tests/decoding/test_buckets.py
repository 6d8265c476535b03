"""Another length of prompt or text is the same program, and the same text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.decoding.buckets import bucket, bucket_sizes, first_columns

SIZE = 5
#: One that compiles fast: what is tested are lengths.
CONFIG = gr.SpeculativeConfig(
    num_drafts=1,
    draft_length=2,
    verifier=gr.verifiers.SingleDraft(),
    measure_optimum=False,
)


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(np.full(SIZE, 0.7), (2, SIZE)).astype(np.float32)
    return tuple(map(gr.testing.markov_model, tables))


@pytest.fixture
def compilations():
    """A list that grows by one whenever XLA compiles anything."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def request(length, width=None, batch=2, padding=0):
    """Prompts of up to `length` tokens, padded to `width`, and their lengths."""
    rng = np.random.default_rng(length)
    lengths = np.linspace(1, length, batch).round().astype(np.int32)[::-1].copy()
    prompts = rng.integers(0, SIZE, (batch, width or length))
    prompts[np.arange(width or length) >= lengths[:, None]] = padding
    return prompts, lengths


def test_buckets_are_powers_of_two_and_then_finer():
    found = [bucket(n) for n in (1, 31, 32, 33, 64, 65, 256, 257, 4096, 4097)]
    assert found == [32, 32, 32, 64, 64, 128, 256, 320, 4096, 5120]
    assert all(n <= bucket(n) <= 1.25 * n for n in range(257, 5000))
    assert bucket_sizes(CONFIG, 20, 40) == (32, 64, 32 + 64 + 3)
    given = dataclasses.replace(CONFIG, cache_length=70)
    assert bucket_sizes(given, 20, 40) == (32, 64, 70)
    # A bucket that does not fit a given cache ends where the cache does.
    assert bucket_sizes(given, 65, 2) == (70, 32, 70)


@pytest.mark.parametrize(
    "draft",
    ["model", pytest.param("prompt lookup", marks=pytest.mark.sweep), "none"],
)
def test_the_second_prompt_of_another_length_compiles_nothing(
    draft, pair, compilations
):
    target, model = pair
    drafter = {"model": model, "prompt lookup": gr.PromptLookup(), "none": None}[draft]

    def run(seed, length, cap):
        result = gr.generate(
            jax.random.key(seed), target, drafter, *request(length), CONFIG, cap
        )
        assert result.tokens.shape == result.from_draft.shape == (2, np.max(cap))
        np.testing.assert_array_equal(result.lengths, cap)

    run(0, 3, 40)
    assert compilations
    compilations.clear()
    for seed, (length, cap) in enumerate([(3, 40), (7, 40), (32, 64), (11, [33, 50])]):
        run(seed, length, cap)
    assert compilations == []
    if draft == "none":  # the next bucket, where it compiles fastest
        run(0, 33, 40)
        assert compilations


@pytest.mark.sweep
def test_neither_does_it_with_a_cache_of_given_length(pair, compilations):
    config = dataclasses.replace(CONFIG, cache_length=60)
    for length, cap in [(20, 37), (9, 33), (21, 36)]:
        prompts = request(length)
        result = gr.generate(jax.random.key(0), *pair, *prompts, config, cap)
        np.testing.assert_array_equal(result.lengths, cap)
        if length == 20:
            compilations.clear()
    assert compilations == []
    with pytest.raises(
        ValueError, match="21 prompt tokens, 37 new ones and a draft of"
    ):
        gr.generate(jax.random.key(0), *pair, *request(21), config, 37)


def test_text_does_not_depend_on_buckets_or_padding(pair):
    """Under `jit` there are none; padding may be no token at all."""
    key = jax.random.key(4)
    exact = jax.jit(
        lambda prompts, lengths: gr.generate(key, *pair, prompts, lengths, CONFIG, 40)
    )
    wanted = exact(*map(jnp.asarray, request(7)))
    assert wanted.tokens.shape == (2, 40)
    for width, padding in ((7, 0), (9, 2), (31, SIZE + 3), (50, -1)):
        prompts = request(7, width, padding=padding)
        prompts[0][:, :7] = np.where(
            np.arange(7) < prompts[1][:, None], request(7)[0], padding
        )
        found = gr.generate(key, *pair, *prompts, CONFIG, 40)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    again = gr.compile_generate(key, *pair, *prompts, CONFIG, 40)()
    jax.tree.map(np.testing.assert_array_equal, again, wanted)


def test_what_is_as_wide_as_wanted_is_left_alone():
    x = jnp.arange(6).reshape(2, 3)
    assert first_columns(x, 3) is x
    placed = jax.device_put(x, jax.devices()[0])
    for array in (x, placed):
        cut = first_columns(array, 2)
        np.testing.assert_array_equal(cut, [[0, 1], [3, 4]])
        assert cut.sharding == array.sharding and cut.committed == array.committed
    assert jax.jit(lambda x: first_columns(x, 2))(x).shape == (2, 2)
