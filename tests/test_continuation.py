"""Text behind a prompt keeps the space that stands before it."""

import json

import numpy as np
import pytest
from loaded import DATA, embedded

from globalres_jax.models import Tokenizer

BASES = json.loads((DATA / "tokenizers.json").read_text("utf-8"))["bases"]


def tokenizers():
    for name, definition in BASES.items():
        yield name, Tokenizer(json.dumps(definition))
    yield "bytes", embedded()[0].tokenizer


TOKENIZERS = dict(tokenizers())


@pytest.mark.parametrize("name", BASES)
def test_the_first_word_keeps_its_space(name):
    tokenizer = TOKENIZERS[name]
    prompt = tokenizer.encode("Once upon")
    whole = tokenizer.encode("Once upon the dog")
    new = whole[len(prompt) :]
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode_continuation(prompt, new) == " the dog"
    assert tokenizer.decode_pieces(prompt, new) == [" the", " dog"]
    # Nothing before: the text begins, as `decode` has it.
    assert tokenizer.decode_continuation([], whole) == "Once upon the dog"
    begin = [tokenizer.token_id("<s>")]
    assert tokenizer.decode_continuation(begin, whole) == tokenizer.decode(whole)
    # What the prompt ends with may be left out of the text.
    assert tokenizer.decode_continuation(prompt + begin, new) == " the dog"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt_and_continuation_are_the_text_wherever_it_is_cut(name):
    tokenizer = TOKENIZERS[name]
    text = "Once  upon é the 東 dog \U0001f600 the\n  dog "
    tokens = tokenizer.encode(text)
    for cut in range(len(tokens) + 1):
        prompt, new = np.array(tokens[:cut]), np.array(tokens[cut:])
        added = tokenizer.decode_continuation(prompt, new)
        # Bytes of a character that the cut goes through belong to what is new.
        before = tokenizer.decode(prompt)
        assert text.startswith(before.rstrip("\ufffd"))
        assert before.rstrip("\ufffd") + added == text
        pieces = tokenizer.decode_pieces(prompt, new)
        assert len(pieces) == len(new) and "".join(pieces) == added
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_of_any_tokens_join_to_the_continuation(name):
    """Broken characters, special tokens and spaces among them."""
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    for _ in range(40):
        prompt, new = (rng.integers(tokenizer.vocab_size, size=n) for n in (4, 12))
        added = tokenizer.decode_continuation(prompt, new)
        assert "".join(tokenizer.decode_pieces(prompt, new)) == added


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_that_come_in_parts_cut_no_character(name):
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(1)
    text = "Once  upon é the 東 dog \U0001f600 the\n  dog \U0001f600"
    tokens = np.array(tokenizer.encode(text))
    for parts in (1, 2, 5, len(tokens)):
        for cut in (0, 3):
            stream, found = tokenizer.stream_pieces(tokens[:cut]), []
            for part in np.array_split(tokens[cut:], parts):
                found += stream.add(part)
                # All of the text that is whole, and nothing else.
                so_far = tokens[cut:][: len(found)]
                added = tokenizer.decode_continuation(tokens[:cut], so_far)
                assert "".join(found) == added and "\ufffd" not in added
            found += stream.end()
            assert found == tokenizer.decode_pieces(tokens[:cut], tokens[cut:])
    # Of what is no text every token has its piece, and none waits for ever.
    for _ in range(20):
        prompt, new = (rng.integers(tokenizer.vocab_size, size=n) for n in (4, 40))
        stream = tokenizer.stream_pieces(prompt)
        found = [stream.add([token]) for token in new]
        assert len(sum(found, stream.end())) == len(new)
    stream = tokenizer.stream_pieces(tokens[:3])
    half = tokenizer.encode("\U0001f600")[-1:]
    if tokenizer.decode(half) == "\ufffd":
        assert sum(map(len, (stream.add(half) for _ in range(40)))) > 17


def test_pieces_of_a_long_text_cost_no_square():
    """Each looks at few tokens, however many are before it."""
    decoded, tokenizer = [], TOKENIZERS["bytes"]

    class Counting(Tokenizer):
        def decode(self, tokens):
            decoded.append(len(tokens))
            return super().decode(tokens)

    tokens = tokenizer.encode("Once upon the dog. " * 100)
    counting = Counting(tokenizer.definition)
    assert len(counting.decode_pieces(tokens[:200], tokens[200:])) > 300
    assert sum(decoded) < 10 * len(tokens)
