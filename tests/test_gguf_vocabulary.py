"""What begins and ends a text, said in a GGUF file and unsaid, is as in llama.cpp."""

import json

import pytest
from gguf_vocabularies import cases, write
from loaded import DATA

from globalres_jax.models.gguf_file import GGUFFile
from globalres_jax.models.gguf_tokenizer import end_tokens, read_tokenizer
from globalres_jax.models.gguf_vocabulary import ENDS, read_vocabulary

#: Made by llama.cpp, see `make_vocabularies.py`.
GOLDEN = json.loads((DATA / "vocabularies.json").read_text("utf-8"))
TEXTS = ("a ab -- it's 12345 $5..", "x=1+2; --a\n\n  (abc) 1234é", "")
CASES = cases()
GROUPS = sorted({name.split()[0] for name in CASES})


def test_every_vocabulary_has_golden_values():
    assert list(GOLDEN) == list(CASES) and len(CASES) > 70
    assert sum(len(wanted["ends"]) for wanted in GOLDEN.values()) > 120
    assert {f"end {token}" for token in ENDS} < set(CASES)


@pytest.mark.parametrize("group", GROUPS)
def test_a_vocabulary_is_read_as_the_reference_reads_it(group, tmp_path):
    for name in (name for name in CASES if name.split()[0] == group):
        wanted = GOLDEN[name]
        file = GGUFFile(write(tmp_path / "m.gguf", CASES[name]))
        found, tokenizer = read_vocabulary(file), read_tokenizer(file)
        assert list(end_tokens(file)) == wanted["ends"], name
        begin, end = (None if wanted[n] < 0 else wanted[n] for n in ("begin", "end"))
        assert (found.begin, found.end) == (begin, end), name
        assert found.adds_begin == (wanted["adds_begin"] and begin is not None), name
        assert found.adds_end == wanted["adds_end"], name
        pairs = zip(TEXTS, wanted["tokens"], strict=False)
        for text, tokens in pairs:
            assert tokenizer.encode(text) == tokens, (name, text)


def test_what_ends_a_text_is_not_shown(tmp_path):
    """Whatever kind a file gives it, as for tokens of chats that are no part of it."""
    end = CASES["end <|im_end|>"]
    tokenizer = read_tokenizer(GGUFFile(write(tmp_path / "m.gguf", end)))
    tokens = tokenizer.encode("ab<|im_end|>")
    assert tokens[-1] == len(end["tokens"]) - 1 == tokenizer.token_id("<|im_end|>")
    assert tokenizer.decode(tokens) == "ab"
