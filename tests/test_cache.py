"""Prompts are read in chunks: as much as is needed, in little memory, and no other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loaded import golden

import globalres_jax as gr
from globalres_jax import cache
from globalres_jax.cache import NewCache
from globalres_jax.models.decoder import DecoderFn, parameter_shapes
from globalres_jax.models.description import Description
from globalres_jax.models.llama import LLAMA

CAPACITY, SIZE = 24, 9


class Recorder(NamedTuple):
    """A cache that knows what it was given, and clamps what is beyond its end."""

    length: jax.Array
    text: jax.Array
    calls: jax.Array
    highest: jax.Array  # position of any token so far, for each row

    @property
    def capacity(self):
        return self.text.shape[1]

    def with_length(self, length):
        return self._replace(length=length)


def new_recorder(batch, length):
    count = jnp.zeros(batch, jnp.int32)
    return Recorder(count, jnp.full((batch, length), -1), jnp.zeros((), int), count)


def record(params, tokens, positions, cache, mask):
    slots = cache.length[:, None] + jnp.arange(tokens.shape[1])[None, :]
    seen = jnp.arange(cache.capacity)[None, None, :] <= slots[:, :, None]
    # A token out of range, or a mask that is not causal, spoils the record.
    good = (tokens >= 0) & (tokens < SIZE) & (mask == seen).all(-1)

    def write(row, new, start):
        return jax.lax.dynamic_update_slice(row, new, (start,))

    text = jax.vmap(write)(cache.text, jnp.where(good, tokens, -9), cache.length)
    highest = jnp.maximum(cache.highest, positions.max(1))
    length = cache.length + tokens.shape[1]
    logits = jnp.zeros((*tokens.shape, SIZE))
    return logits, Recorder(length, text, cache.calls + 1, highest)


@pytest.mark.parametrize("width", [1, 3, 4, 8, 10, 13, CAPACITY])
@pytest.mark.parametrize("padding", [0, SIZE + 7, -1])
def test_as_many_chunks_as_the_longest_prompt_needs(width, padding, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)
    model = gr.Model((), record, new_recorder, SIZE)
    rng = np.random.default_rng(width)
    read = jax.jit(lambda *prompts: cache.prefill(model, *prompts, CAPACITY))
    for longest in {1, 2, (width + 1) // 2, width - 1, width} - {0}:
        if longest > width:
            continue
        lengths = np.array([longest, 1, (longest + 1) // 2])
        prompts = rng.integers(0, SIZE, (3, width))
        prompts[np.arange(width) >= lengths[:, None]] = padding
        found = jax.tree.map(np.asarray, read(prompts, lengths))
        assert int(found.calls) == -(-(longest - 1) // min(4, width))
        np.testing.assert_array_equal(found.length, lengths - 1)
        for row, length in enumerate(lengths):
            text = found.text[row, : length - 1]
            np.testing.assert_array_equal(text, prompts[row, : length - 1])
            assert int(found.highest[row]) <= length - 1


def test_chunks_hold_what_one_reading_of_the_whole_does(monkeypatch):
    """Sliding windows included, and a last chunk that overlaps the one before."""
    model, tokens, _ = golden("gemma2")
    prompts, lengths = tokens[:, :14], np.array([14, 6], np.int32)
    found = []
    for size in (5, 14):
        monkeypatch.setattr(cache, "CHUNK", size)
        read = jax.jit(lambda *args: cache.prefill(*args, CAPACITY))
        found.append(jax.tree.map(np.asarray, read(model, prompts, lengths)))
    for row, length in enumerate(lengths):
        text = [
            jax.tree.map(lambda x, row=row, end=length - 1: x[row, :end], one[:3])
            for one in found
        ]
        places = np.arange(length - 1)
        np.testing.assert_array_equal(text[0][2], places)
        for chunked, whole in zip(*map(jax.tree.leaves, text), strict=True):
            np.testing.assert_allclose(chunked, whole, atol=1e-5)


def test_a_long_prompt_takes_the_memory_of_a_chunk_and_no_output_head():
    """4,096 tokens: what the compiler says it needs beside parameters and cache."""
    heads, width, length, capacity = 2, 16, 4096, 4224
    prompts = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    flops, memory = [], []
    for vocab_size in (256, 262_144):
        options = {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "tie_word_embeddings": True,
        }
        function = DecoderFn(
            LLAMA.configure(Description(options, "test", LLAMA.defaults))
        )
        model = gr.Model(
            parameter_shapes(function.config), function, NewCache(function), vocab_size
        )
        read = jax.jit(cache.prefill, static_argnums=3)
        compiled = read.lower(model, prompts, lengths, capacity).compile()
        flops.append(compiled.cost_analysis()["flops"])
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        size = sum(x.size * 4 for x in jax.tree.leaves(compiled.out_info))
    scores = heads * cache.CHUNK * capacity * 4
    assert max(memory) < size + 3 * scores
    # The head of a chunk alone would be 2 x 256 x 16 x 262,144.
    assert flops[1] - flops[0] < 1e-3 * 2 * cache.CHUNK * width * 262_144
    assert memory[1] - memory[0] < 1e-3 * cache.CHUNK * 262_144 * 4
