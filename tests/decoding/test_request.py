"""Texts beyond what a model was made for are refused, in numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr


def generate(lengths, caps, context_length, width=50):
    model = gr.testing.markov_model(jnp.full((3, 3), 1 / 3))
    model = dataclasses.replace(model, context_length=context_length)
    prompts = jnp.zeros((len(lengths), width), jnp.int32)
    lengths = jnp.asarray(lengths)
    return gr.generate(
        jax.random.key(0), model, None, prompts, lengths, max_new_tokens=caps
    )


def test_prompts_and_texts_beyond_the_context_are_refused():
    message = "a prompt of 41 tokens is longer than the target's context of 40"
    with pytest.raises(ValueError, match=f"prompt_lengths: {message}"):
        generate([3, 41], 1, 40)
    message = (
        "max_new_tokens: a prompt of 30 tokens and 11 new ones are more than the "
        "target's context of 40; at most 10 new ones fit"
    )
    with pytest.raises(ValueError, match=message):
        generate([3, 30], 11, 40)
    with pytest.raises(ValueError, match=message):
        generate([3, 30], [37, 11], 40)


def test_texts_that_fit_their_context_exactly_are_written():
    # What counts are tokens, each row's own, and no padding.
    result = generate([3, 30], [37, 10], 40)
    np.testing.assert_array_equal(result.lengths, [37, 10])
    result = generate([3, 30], [37, 10], None)
    np.testing.assert_array_equal(result.lengths, [37, 10])
