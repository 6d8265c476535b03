"""Tokenizers from folders and GGUF files, chat templates, vocabularies that differ."""

import dataclasses
import itertools
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loaded import embedded

import globalres_jax as gr
from globalres_jax.models import Tokenizer
from globalres_jax.models.gguf_file import GGUFFile
from globalres_jax.models.gguf_tokenizer import end_tokens, read_tokenizer
from globalres_jax.models.pairs import fit_vocabulary

TEXTS = [
    "ROMEO:\nO, she doth teach the torches to burn bright!",
    "  two  spaces,\ttabs\n\n\n",
    "naïve café, 東京, \U0001f600 12345",
    "",
]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CHAT = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {%- if message['role'] == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}\n"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write(path, tokens, kinds, fill):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


@pytest.fixture
def embedded_in_gguf(tmp_path):
    """The embedded pair's byte-level tokenizer, as a converter writes it."""
    original = embedded()[0].tokenizer
    model = json.loads(original.definition)["model"]
    tokens = [original.token_text(i) for i in range(original.vocab_size)]
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]
    ]

    def fill(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(merges)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHAT)

    kinds = [CONTROL] + [NORMAL] * (len(tokens) - 1)
    return original, write(tmp_path / "m.gguf", tokens, kinds, fill)


def test_byte_level_tokenizer_survives_gguf(embedded_in_gguf):
    original, file = embedded_in_gguf
    tokenizer = read_tokenizer(file)
    for text in TEXTS:
        assert tokenizer.encode(text) == original.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert end_tokens(file) == (0,)
    assert tokenizer.chat_template == CHAT


def sentence_piece(text, scores):
    """Reference: merge the neighbours of the highest score until none is left."""
    pieces = list(text)
    while True:
        pairs = [
            (scores.get(a + b, -np.inf), -i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
        ]
        best = max(pairs, default=(-np.inf, 0))
        if best[0] == -np.inf:
            return pieces
        i = -best[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def test_sentence_piece_tokenizer_merges_by_score(tmp_path):
    """Against the algorithm itself, on a vocabulary of random pieces."""
    rng = np.random.default_rng(0)
    letters = list("abc▁")
    pieces = {
        "".join(rng.choice(letters, size))
        for size in (2, 2, 2, 3, 3, 4)
        for _ in range(8)
    }
    special = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{i:02X}>" for i in range(256)]
    words = sorted(pieces)
    tokens = special + raw + letters + words
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (4 + len(words))
    ranks = -rng.permutation(len(words)).astype(float)
    scores = [0.0] * 259 + [-1000.0] * 4 + ranks.tolist()

    def fill(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    file = write(tmp_path / "m.gguf", tokens, kinds, fill)
    tokenizer, by_piece = read_tokenizer(file), dict(zip(words, ranks, strict=True))
    for _ in range(50):
        text = "".join(rng.choice(list("abc "), 20))
        wanted = sentence_piece("▁" + text.replace(" ", "▁"), by_piece)
        assert tokenizer.encode(text) == [1] + [tokens.index(x) for x in wanted]
        assert tokenizer.encode(text, special_tokens=False)[0] != 1
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("é")[-2:] == [3 + 0xC3, 3 + 0xA9]
    assert end_tokens(file) == (2,)


def test_unknown_ways_to_cut_words_are_refused(tmp_path):
    def fill(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("klingon")

    file = write(tmp_path / "m.gguf", ["a", "b"], [NORMAL, NORMAL], fill)
    with pytest.raises(ValueError, match="cuts words as 'klingon'; supported: smollm"):
        read_tokenizer(file)


def test_chat_template(embedded_in_gguf):
    tokenizer = read_tokenizer(embedded_in_gguf[1])
    messages = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "Who?"},
    ]
    prompt = tokenizer.apply_chat_template(messages)
    assert prompt == (
        "<|endoftext|><|system|>Be brief.<|end|>\n<|user|>Who?<|end|>\n<|assistant|>"
    )
    whole = tokenizer.apply_chat_template(messages, reply=False)
    assert prompt == whole + "<|assistant|>"
    with pytest.raises(ValueError, match="its chat template says: no tools"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}])
    with pytest.raises(ValueError, match="has no chat template"):
        embedded()[0].tokenizer.apply_chat_template(messages)


def test_options_beside_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(embedded()[0].tokenizer.definition)
    options = {
        "bos_token": {"content": "<|endoftext|>"},
        "eos_token": "<|endoftext|>",
        "chat_template": [
            {"name": "tools", "template": "no"},
            {"name": "default", "template": "{{ eos_token }}"},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.apply_chat_template([]) == "<|endoftext|>"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}!")
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.apply_chat_template([]) == "<|endoftext|>!"


def named_model(tokens, vocab_size):
    """A Markov model with a tokenizer of whole words."""
    vocab = {token: index for index, token in enumerate(tokens)}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]},
    }
    rows = np.random.default_rng(vocab_size).dirichlet(np.ones(vocab_size), vocab_size)
    model = gr.testing.markov_model(jnp.asarray(rows, jnp.float32))
    return dataclasses.replace(model, tokenizer=Tokenizer(json.dumps(definition)))


@pytest.mark.parametrize("sizes", [(5, 7), (7, 5)])
def test_padded_vocabularies_make_a_pair(sizes):
    """Tokens beyond the target's are cut off, and those it lacks get no probability."""
    target, bare = (named_model(["a", "b", "c", "d"], size) for size in sizes)
    draft = fit_vocabulary(target, bare)
    assert draft.vocab_size == target.vocab_size == sizes[0]
    assert fit_vocabulary(target, target) is target
    shared = min(sizes)
    tokens = np.arange(shared)[None]
    where = (tokens, tokens, bare.init_cache(1, 8), None)
    logits, cache = draft.apply(draft.params, *where)
    wanted, _ = bare.apply(bare.params, *where)
    assert logits.shape == (1, shared, sizes[0]) and int(cache.length[0]) == shared
    np.testing.assert_array_equal(logits[..., :shared], wanted[..., :shared])
    np.testing.assert_array_equal(logits[..., shared:], -np.inf)


def test_a_draft_that_lacks_tokens_decodes():
    """At temperature 0 the text is the target's, its own tokens among it."""
    target, draft = (named_model(["a", "b", "c", "d"], size) for size in (7, 5))
    # Token by token through all seven, the last two unknown to the draft.
    rows = 0.9 * np.roll(np.eye(7), 1, axis=1) + 0.1 / 7
    target = dataclasses.replace(target, params=jnp.log(jnp.asarray(rows)))
    draft = fit_vocabulary(target, draft)
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=1, temperature=0)
    text = (jnp.array([[0, 1]]), jnp.array([2]))
    result = gr.generate(jax.random.key(3), target, draft, *text, config, 12)
    np.testing.assert_array_equal(result.tokens[0], np.arange(2, 14) % 7)
    assert np.isfinite(result.metrics.acceptance_rate).all()


def test_a_token_that_differs_is_shown():
    target, draft = named_model(list("abcd"), 6), named_model(list("abxd"), 6)
    with pytest.raises(ValueError, match="token 2 is 'x', the target's 'c'"):
        fit_vocabulary(target, draft)
    bare = gr.testing.markov_model(jnp.full((3, 3), 1 / 3))
    with pytest.raises(
        ValueError, match="has 3 tokens, the target 6, and there are no"
    ):
        fit_vocabulary(target, bare)
