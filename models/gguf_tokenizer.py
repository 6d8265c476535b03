"""The tokenizer inside a GGUF file, as a definition for the `tokenizers` library."""

from __future__ import annotations

import json
from typing import Any

from globalres_jax.models.gguf_file import GGUFFile
from globalres_jax.models.gguf_vocabulary import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    numbers,
    read_vocabulary,
)
from globalres_jax.models.tokenizer import Tokenizer

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


def _split(*patterns: str) -> list[dict[str, Any]]:
    cuts = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in patterns
    ]
    return [*cuts, _bytes(False)]


#: How each byte-level tokenizer cuts a text into words.
_PRE_TOKENIZERS = {
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": _split(_WORDS % "{1,3}"),
    "qwen2": _split(_WORDS % ""),
    "gpt-2": [_bytes(True)],
    "default": _split(
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
    "tekken": _split(_TEKKEN),
}
for _same in ("llama3", "llama-v3"):
    _PRE_TOKENIZERS[_same] = _PRE_TOKENIZERS["llama-bpe"]


def read_tokenizer(file: GGUFFile, vocabulary: Vocabulary | None = None) -> Tokenizer:
    """The file's tokenizer.

    Args:
      file: an open file.
      vocabulary: what `read_vocabulary` has read of it, if it has.

    Raises:
      ValueError: there is none, or it is of a kind not supported; it is named.
    """
    vocabulary = vocabulary or read_vocabulary(file)
    make = _byte_level if vocabulary.model == "gpt2" else _sentence_piece
    definition = make(vocabulary)
    definition["added_tokens"] = [
        _added(index, token, kind == CONTROL)
        for index, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        )
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    definition["post_processor"] = _ends_of_prompt(vocabulary)
    special = tuple(
        (name, vocabulary.tokens[index])
        for name, index in (
            ("bos_token", vocabulary.begin),
            ("eos_token", vocabulary.end),
        )
        if index is not None
    )
    template = file.metadata("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(
            f"source: {file.path}: tokenizer.chat_template must be a text; got "
            f"{type(template).__name__}"
        )
    tokenizer = Tokenizer(json.dumps(definition, ensure_ascii=False), template, special)
    try:
        _ = tokenizer.vocab_size
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(
            f"source: {file.path}: tokenizer.ggml is no tokenizer: {error}"
        ) from error
    return tokenizer


def end_tokens(file: GGUFFile) -> tuple[int, ...]:
    """Tokens that end a text or a turn."""
    return read_vocabulary(file).ends


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    """Byte-pair encoding of bytes (GPT-2)."""
    described = vocabulary.described
    pre = described.get("pre")
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"source: {described.origin} cuts words as {pre!r}; supported: "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(vocabulary.tokens)},
            "merges": _listed_merges(vocabulary),
            # Llama 3 takes whole words of its vocabulary as they are.
            "ignore_merges": pre in ("llama-bpe", "llama3", "llama-v3", "tekken"),
        },
    }


def _listed_merges(vocabulary: Vocabulary) -> list[str]:
    """The merges of a file: two tokens each that make a third."""
    described = vocabulary.described
    merges, tokens = described.get("merges"), set(vocabulary.tokens)
    if not isinstance(merges, list) or not all(
        isinstance(pair, str) and " " in pair[1:-1] for pair in merges
    ):
        raise described.error("merges", "a list of two pieces each, a space between")
    for pair in merges:
        cut = pair.index(" ", 1)
        pieces = pair[:cut], pair[cut + 1 :]
        if not {*pieces, "".join(pieces)} <= tokens:
            raise ValueError(
                f"source: {described.origin}: {described.name('merges')} has {pair!r}, "
                "whose pieces or whole are no tokens"
            )
    return merges


def _sentence_piece(vocabulary: Vocabulary) -> dict[str, Any]:
    """Byte-pair encoding of characters, unknown ones in bytes (Llama 2, Gemma)."""
    described, tokens = vocabulary.described, vocabulary.tokens
    vocab = {token: index for index, token in enumerate(tokens)}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers = [space]
    if described.flag("add_space_prefix"):
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = described.whole("unknown_token_id", 0, len(tokens) - 1)
    scores = [0.0] * len(tokens)
    if described.says("scores"):
        scores = numbers(described, "scores", len(tokens))
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": _merges(vocab, scores, vocabulary.kinds),
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
        if kinds[index] in (UNKNOWN, CONTROL):
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


def _ends_of_prompt(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Puts the first token before a text and the last behind it, where they belong."""
    begin = vocabulary.begin if vocabulary.adds_begin else None
    end = vocabulary.end if vocabulary.adds_end else None
    if begin is None and end is None:
        return None

    def template(index: int | None) -> list[dict[str, Any]]:
        if index is None:
            return []
        return [{"SpecialToken": {"id": vocabulary.tokens[index], "type_id": 0}}]

    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    names = {vocabulary.tokens[i]: i for i in (begin, end) if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*template(begin), text, *template(end)],
        "pair": [*template(begin), text, other, *template(end)],
        "special_tokens": {
            name: {"id": name, "ids": [index], "tokens": [name]}
            for name, index in names.items()
        },
    }
