"""Texts end where they say a stop string, wherever chunks of steps end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.decoding import stream as streaming
from globalres_jax.decoding.stop_strings import WatchedText
from globalres_jax.models.continuation import PieceStream

#: Tokens of one letter or more, and the halves of a character.
TOKENS = [b"a", b"b", b"ab", b"bca", b" ", b"\xc3", b"\xa9", b"<e>"]
V, NEW = len(TOKENS), 24


class Letters:
    """A tokenizer that only reads."""

    def decode(self, tokens):
        return b"".join(TOKENS[t] for t in tokens).decode("utf-8", errors="replace")

    def stream_pieces(self, prompt):
        return PieceStream(self.decode, prompt)


def model(seed):
    table = np.random.default_rng(seed).dirichlet(np.full(V, 0.7), V)
    made = gr.testing.markov_model(jnp.asarray(table, jnp.float32))
    return dataclasses.replace(made, tokenizer=Letters())


TARGET, DRAFT = model(0), model(1)
CONFIG = gr.SpeculativeConfig(
    num_drafts=1,
    draft_length=2,
    verifier=gr.verifiers.SingleDraft(),
    top_log_probabilities=2,
)
PROMPTS, LENGTHS = np.array([[0, 1], [2, 0], [3, 4], [1, 1]]), np.array([2, 1, 2, 2])

#: Only one row ends with a token.
ENDS = np.array([[-1], [-1], [7], [-1]])


def request(seed=5, **changes):
    keys = jax.random.split(jax.random.key(seed), 4)
    config = dataclasses.replace(CONFIG, **changes)
    return keys, TARGET, DRAFT, PROMPTS, LENGTHS, config, NEW, ENDS


def wanted(tokens, strings, include, least=0):
    """Text and number of tokens by definition, letter by letter; None if it goes on."""
    stream, pieces = PieceStream(Letters().decode, [0]), []
    for token in tokens:
        pieces += stream.add([token])
    text, whole = "", "".join([*pieces, *stream.end()])
    for count, piece in enumerate(pieces, start=1):
        for letter in piece:
            text += letter
            met = [s for s in strings if text.endswith(s) and count >= least]
            if met:
                cut = 0 if include else max(map(len, met))
                return text[: len(text) - cut], count
    return whole, None


@pytest.mark.parametrize("include", [False, True])
def test_a_text_by_definition_however_it_comes(include):
    rng, met = np.random.default_rng(0), 0
    for _ in range(150):
        tokens = rng.integers(V, size=rng.integers(1, 20)).tolist()
        strings = ["".join(rng.choice(list("abcé "), 1 + k)) for k in range(3)]
        strings, least = tuple(strings[rng.integers(3) :]), int(rng.integers(5))
        text, length = wanted(tokens, strings, include, least)
        cuts = sorted(rng.integers(len(tokens) + 1, size=3).tolist())
        for parts in ([len(tokens)], [*cuts, len(tokens)]):
            seen = WatchedText(Letters().stream_pieces([0]), strings, include, least)
            shown = []
            for end in parts:
                shown += seen.read(tokens[:end], end == len(tokens))
                assert seen.text == "".join(shown) and text.startswith(seen.text)
            assert seen.text == text and seen.stopped == (length is not None)
            assert seen.length == (length or len(tokens))
            assert len(shown) == seen.length
        met += length is not None
    assert 30 < met < 120


def check(chunks, whole):
    """The chunks add up to the result of one call."""
    last = chunks[-1].result
    for row, length in enumerate(np.asarray(whole.lengths)):
        tokens = np.concatenate([chunk.tokens[row] for chunk in chunks])
        np.testing.assert_array_equal(tokens, whole.tokens[row, :length])
        pieces = [piece for chunk in chunks for piece in chunk.pieces[row]]
        assert "".join(pieces) == whole.texts[row] and len(pieces) == length
    assert not chunks[-1].running.any()
    for one, other in zip(
        *(x._replace(metrics=None) for x in (last, whole)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


STOPS = [["cab b", " bb", "zz"], "é", ["xyz"], ["aaa"]]


def test_rows_end_at_their_strings_and_others_go_on():
    """As one call has it, or a stream by chunks of any size; by the same programs."""
    keys, *rest = request()
    *_, free = gr.stream(keys, *rest, steps_per_chunk=3)
    free, before = free.result, streaming._advance._cache_size()
    unstopped = np.asarray(free.tokens)
    for include, steps in ((False, 1), (True, 3)):
        stops = {"stop": STOPS, "include_stop": include}
        keys, *rest = request()
        whole = gr.generate(keys, *rest, **stops)
        keys, *rest = request()
        chunks = list(gr.stream(keys, *rest, steps_per_chunk=steps, **stops))
        check(chunks, whole)
        reasons = []
        for row, strings in enumerate(STOPS):
            strings = [strings] if isinstance(strings, str) else strings
            tokens = unstopped[row, : int(free.lengths[row])].tolist()
            text, length = wanted(tokens, strings, include)
            assert whole.texts[row] == text
            assert int(whole.lengths[row]) == (length or len(tokens))
            ended = length is not None or tokens[-1] == ENDS[row]
            reasons.append("stop" if ended else "length")
            length = int(whole.lengths[row])
            for found, nothing in (
                (whole.tokens, -1),
                (whole.top_tokens, -1),
                (whole.log_probabilities, 0),
                (whole.from_draft, False),
            ):
                assert np.all(np.asarray(found)[row, length:] == nothing)
        assert whole.finish_reasons == reasons
        assert set(reasons) == {"stop", "length"}
        # Rows that have ended take no steps.
        last, spent = chunks[-1].result.metrics, free.metrics
        assert int(last.num_spec_steps.sum()) < int(spent.num_spec_steps.sum())
    assert streaming._advance._cache_size() == before


def test_bad_stops_are_refused():
    def refuses(message, stop="a", target=TARGET, **changes):
        keys, _, *rest = request()
        with pytest.raises((TypeError, ValueError), match=message):
            gr.generate(keys, target, *rest, stop=stop, **changes)

    refuses("stop: an empty string", "")
    refuses("stop: an empty string", ["a", ""])
    refuses("stop: expected a string, several.*got 5", 5)
    refuses("stop: expected a string, several.*got 3", [["a"], [3], [], []])
    refuses("stop: expected strings for 4 rows, got 2", [["a"], ["b"]])
    refuses("include_stop: there are no stop strings", None, include_stop=True)
    refuses("include_stop: expected True or False", include_stop=2)
    bare = dataclasses.replace(TARGET, tokenizer=None)
    refuses("stop: the target has no tokenizer", target=bare)
    mute = dataclasses.replace(TARGET, tokenizer=object())
    refuses("stop: expected a target whose tokenizer has", target=mute)
    keys, *rest = request()
    with pytest.raises(ValueError, match="stop: `jit` or `vmap` traces the arguments"):
        jax.jit(
            lambda prompts: gr.generate(keys, *rest[:2], prompts, *rest[3:], stop="a")
        )(PROMPTS)
