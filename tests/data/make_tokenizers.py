"""Tokens that `transformers` makes of small folders, for `test_tokenizer_folder.py`.

    pip install transformers==5.24.0
    python tests/data/make_tokenizers.py

Each folder is one of three tokenizers, with changes and files beside it.
"""

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).parent
TEXTS = [
    "Once upon the dog",
    " Once  the dog.  A, é!\n",
    "<s>Once</s> the <|im_start|>the<|im_end|> dog",
    "",
    "<bos>the<eos>",
    "Once </s> upon",
]
FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
PIECES = ["On", "ce", "th", "he", "up", "on", "do", "og", "▁a", "▁t", "▁d"]
MERGES = ["n ce", "On ce", "up on", "th e", "do g", "▁ Once", "▁ upon", "▁ the"]
MERGES = [tuple(merge.split(" ")) for merge in [*MERGES, "▁ dog"]]


def sentence_piece(kind):
    """A BPE of characters, as Llama's older files, its newer ones, or Gemma's."""
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    vocab += "▁abcdefghijklmnopqrstuvwxyzO.,!"
    vocab += PIECES + ["".join(pair) for pair in MERGES]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if kind != "gemma":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    normalizers = {"prepend": [prepend, replace], "gemma": [replace]}.get(kind, [])
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **FLAGS}
            for i, token in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {**metaspace, "split": False} if kind == "metaspace" else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[piece[0], piece[1:]] for piece in PIECES] + MERGES,
        },
    }


BASES = {kind: sentence_piece(kind) for kind in ("prepend", "metaspace", "gemma")}
SIZE = len(BASES["prepend"]["model"]["vocab"])
CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PAD = {
    "strategy": {"Fixed": 12},
    "direction": "Right",
    "pad_to_multiple_of": 8,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BEGIN = {"SpecialToken": {"id": "<s>", "type_id": 0}}
START = {
    "type": "TemplateProcessing",
    "single": [BEGIN, TEXT],
    "pair": [BEGIN, TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA = {"tokenizer_class": "LlamaTokenizerFast", **ENDS}
OPTIONS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
ADDED, CONFIG = "added_tokens.json", "config.json"
TAGS = {"<|im_start|>": SIZE, "<|im_end|>": SIZE + 1}


def token(content, **flags):
    return {"content": content, **FLAGS, **flags}


#: Name, tokenizer, changes to it, files beside it.
CASES = [
    ("plain", "prepend", {}, {}),
    ("truncation", "prepend", {"truncation": CUT}, {}),
    ("padding", "metaspace", {"padding": PAD}, {}),
    ("both, Llama", "prepend", {"truncation": CUT, "padding": PAD}, {OPTIONS: LLAMA}),
    ("begin", "prepend", {"post_processor": START}, {}),
    (
        "flags beside a file that says it",
        "metaspace",
        {"post_processor": START},
        {OPTIONS: {**LLAMA, "add_bos_token": False, "add_eos_token": True}},
    ),
    ("flags", "metaspace", {}, {OPTIONS: {**ENDS, "add_bos_token": True}}),
    ("Llama, first", "prepend", {}, {OPTIONS: {**LLAMA, "legacy": False}}),
    ("Llama, always", "metaspace", {}, {OPTIONS: {**LLAMA, "legacy": True}}),
    ("Llama, never", "prepend", {}, {OPTIONS: {**LLAMA, "add_prefix_space": False}}),
    ("no class, never", "prepend", {}, {OPTIONS: {"add_prefix_space": False}}),
    (
        "Gemma",
        "gemma",
        {},
        {
            OPTIONS: {"tokenizer_class": "GemmaTokenizer"},
            CONFIG: {"model_type": "gemma2"},
        },
    ),
    ("map alone", "prepend", {}, {SPECIAL: {**ENDS, "pad_token": "<pad>"}}),
    ("map first", "prepend", {}, {OPTIONS: {"bos_token": "<unk>"}, SPECIAL: ENDS}),
    (
        "map of no account",
        "prepend",
        {},
        {
            OPTIONS: {
                "bos_token": "<unk>",
                "added_tokens_decoder": {"1": token("<s>")},
            },
            SPECIAL: {"bos_token": "<s>", "eos_token": token("</s>")},
        },
    ),
    ("map, more", "prepend", {}, {SPECIAL: {"additional_special_tokens": [*TAGS]}}),
    ("more", "prepend", {}, {OPTIONS: {"additional_special_tokens": [*TAGS]}}),
    (
        "more, by name",
        "prepend",
        {},
        {OPTIONS: {"extra_special_tokens": {"x_token": "<|im_end|>"}}},
    ),
    ("a name of its own", "prepend", {}, {OPTIONS: {"image_token": "<|im_start|>"}}),
    (
        "numbered",
        "prepend",
        {},
        {
            OPTIONS: {
                "added_tokens_decoder": {
                    "2": token("</s>", lstrip=True, rstrip=True),
                    str(SIZE): token("<|im_start|>"),
                    str(SIZE + 1): token("<|im_end|>", special=False),
                }
            }
        },
    ),
    ("added", "prepend", {}, {ADDED: TAGS}),
    (
        "added, one special",
        "prepend",
        {},
        {ADDED: TAGS, OPTIONS: {"additional_special_tokens": ["<|im_end|>"]}},
    ),
    (
        "not in the file",
        "prepend",
        {},
        {OPTIONS: {"bos_token": "<bos>", "eos_token": "<eos>"}},
    ),
    ("a word that is special", "prepend", {}, {OPTIONS: {"eos_token": "the"}}),
    ("split", "prepend", {}, {OPTIONS: {**ENDS, "split_special_tokens": True}}),
]


def measure(base, changes, files):
    with tempfile.TemporaryDirectory() as folder:
        whole = {"tokenizer.json": {**BASES[base], **changes}, **files}
        for name, content in whole.items():
            Path(folder, name).write_text(json.dumps(content), "utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer.encode(text) for text in TEXTS]
        return {
            "ids": ids,
            "bare": [tokenizer.encode(t, add_special_tokens=False) for t in TEXTS],
            "decoded": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
            "special_tokens": tokenizer.special_tokens_map,
            "size": len(tokenizer),
        }


if __name__ == "__main__":
    found = [
        {
            "name": name,
            "base": base,
            "changes": changes,
            "files": files,
            "golden": measure(base, changes, files),
        }
        for name, base, changes, files in CASES
    ]
    described = {"texts": TEXTS, "bases": BASES, "cases": found}
    (HERE / "tokenizers.json").write_text(json.dumps(described) + "\n", "utf-8")
