"""The tokenizer inside a GGUF file, as a definition for the `tokenizers` library."""

from __future__ import annotations

import json
from typing import Any

from globalres_jax.models.gguf_file import GGUFFile
from globalres_jax.models.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

#: Tokens that end a turn, whatever the file calls its end of text.
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> list[dict[str, Any]]:
    first = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return [first, _bytes(False)]


#: How each byte-level tokenizer cuts a text into words.
_PRE_TOKENIZERS = {
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": _split(_WORDS % "{1,3}"),
    "qwen2": _split(_WORDS % ""),
    "gpt-2": [_bytes(True)],
    "default": [_bytes(True)],
    "tekken": _split(_TEKKEN),
}
for _same in ("llama3", "llama-v3"):
    _PRE_TOKENIZERS[_same] = _PRE_TOKENIZERS["llama-bpe"]


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The file's tokenizer.

    Raises:
      ValueError: there is none, or it is of a kind not supported; it is named.
    """
    tokens = file.metadata("tokenizer.ggml.tokens")
    model = file.metadata("tokenizer.ggml.model")
    if tokens is None or model is None:
        raise ValueError(f"source: {file.path} has no tokenizer")
    kinds = file.metadata("tokenizer.ggml.token_type", [1] * len(tokens))
    if model == "gpt2":
        definition = _byte_level(file, tokens)
    elif model == "llama":
        definition = _sentence_piece(file, tokens, kinds)
    else:
        raise ValueError(
            f"source: {file.path} has a tokenizer of kind {model!r}; supported: "
            "gpt2, llama"
        )
    definition["added_tokens"] = [
        _added(index, token, kind == _CONTROL)
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    definition["post_processor"] = _begin(file, tokens, model)
    special = []
    for name, key in (("bos_token", "bos"), ("eos_token", "eos")):
        index = file.metadata(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            special.append((name, tokens[index]))
    template = file.metadata("tokenizer.chat_template")
    text = json.dumps(definition, ensure_ascii=False)
    return Tokenizer(text, template, tuple(special))


def end_tokens(file: GGUFFile) -> tuple[int, ...]:
    """Tokens that end a text or a turn."""
    tokens = file.metadata("tokenizer.ggml.tokens", [])
    kinds = file.metadata("tokenizer.ggml.token_type", [1] * len(tokens))
    ends = {file.metadata(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")}
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _CONTROL and token in ENDS:
            ends.add(index)
    return tuple(sorted(int(index) for index in ends if index is not None))


def _byte_level(file: GGUFFile, tokens: list[str]) -> dict[str, Any]:
    """Byte-pair encoding of bytes (GPT-2)."""
    pre = file.metadata("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"source: {file.path} cuts words as {pre!r}; supported: "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": file.metadata("tokenizer.ggml.merges", []),
            # Llama 3 takes whole words of its vocabulary as they are.
            "ignore_merges": pre in ("llama-bpe", "llama3", "llama-v3", "tekken"),
        },
    }


def _sentence_piece(
    file: GGUFFile, tokens: list[str], kinds: list[int]
) -> dict[str, Any]:
    """Byte-pair encoding of characters, unknown ones in bytes (Llama 2, Gemma)."""
    vocab = {token: index for index, token in enumerate(tokens)}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers = [space]
    if file.metadata("tokenizer.ggml.add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = file.metadata("tokenizer.ggml.unknown_token_id", 0)
    scores = file.metadata("tokenizer.ggml.scores", [0.0] * len(tokens))
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": _merges(vocab, scores, kinds),
            "unk_token": tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _merges(
    vocab: dict[str, int], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
    """Every way to put a piece together, the likeliest pieces first."""
    found = []
    for piece, index in vocab.items():
        if kinds[index] in (_UNKNOWN, _CONTROL):
            continue
        for cut in range(1, len(piece)):
            left, right = vocab.get(piece[:cut]), vocab.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right, cut, piece))
    found.sort()
    return [(piece[:cut], piece[cut:]) for *_, cut, piece in found]


def _added(index: int, token: str, special: bool) -> dict[str, Any]:
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _begin(file: GGUFFile, tokens: list[str], model: str) -> dict[str, Any] | None:
    """Puts the first token before a text, where the model wants one."""
    start = file.metadata("tokenizer.ggml.bos_token_id")
    wants = file.metadata("tokenizer.ggml.add_bos_token", model == "llama")
    if start is None or not wants:
        return None
    token = tokens[start]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, other],
        "special_tokens": {token: {"id": token, "ids": [start], "tokens": [token]}},
    }
