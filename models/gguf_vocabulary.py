"""The vocabulary of a GGUF file: its tokens, their kinds, what begins and ends a text.

What a file leaves out, and what ends a text whatever it says, is as in llama.cpp.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from globalres_jax.models.description import Description, is_whole, shown
from globalres_jax.models.gguf_file import GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_LEAD = "tokenizer.ggml."

#: Tokens that end a text or a turn, whatever the file says of them.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>"),
    *("<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>"),
    *("_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>"),
    *(
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend▁of▁sentence\uff5c>",
        "<|ifm|im_end|>",
        "[e~[",
    ),
)

#: What parts code from code; each ends a text, unless the file names another one.
_PARTS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>", "<|plamo:file_separator|>"),
}
#: Tokens of some chats that are shown.
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

#: Ways to cut words whose models want a text to begin with the first token.
_BEGINNING = ("llama-bpe", "llama3", "llama-v3", "tekken")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens, and what some of them do.

    Attributes:
      described: the file's options of its tokenizer.
      model: "gpt2" for byte-pair encoding of bytes, "llama" for that of characters.
      tokens: text of each.
      kinds: kind of each, as GGUF numbers them.
      begin, end: the tokens that begin and end a text; None without one.
      ends: all tokens that end a text or a turn.
    """

    described: Description
    model: str
    tokens: list[str]
    kinds: list[int]
    begin: int | None
    end: int | None
    ends: tuple[int, ...]

    @property
    def adds_begin(self) -> bool:
        """Whether a prompt begins with `begin`."""
        return self.described.flag("add_bos_token") and self.begin is not None

    @property
    def adds_end(self) -> bool:
        """Whether a prompt ends with `end`."""
        return self.described.flag("add_eos_token") and self.end is not None


def read_vocabulary(file: GGUFFile) -> Vocabulary:
    """The vocabulary of a file.

    Raises:
      ValueError: there is none, it is of a kind not supported, or malformed.
    """
    described = _options(file)
    if not described.says("tokens") or not described.says("model"):
        raise ValueError(f"source: {file.path} has no tokenizer")
    model = described.get("model")
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"source: {file.path} has a tokenizer of kind {shown(model)}; supported: "
            "gpt2, llama"
        )
    tokens = _texts(file, described)
    kinds = _kinds(described, len(tokens))
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(t for i, t in enumerate(tokens) if ids[t] != i)
        raise described.error("tokens", f"distinct, and {twice!r} is there twice")
    usual = (1, 2) if model == "llama" else (11, 11)
    begin, end = (
        _token(described, f"{name}_token_id", len(tokens), default)
        for name, default in zip(("bos", "eos"), usual, strict=True)
    )
    ends = _ends(described, ids, kinds)
    ends = tuple(sorted(ends if end is None else ends | {end}))
    return Vocabulary(described, model, tokens, kinds, begin, end, ends)


def _options(file: GGUFFile) -> Description:
    options = {
        key.removeprefix(_LEAD): file.metadata(key)
        for key in file.keys()  # noqa: SIM118
        if key.startswith(_LEAD)
    }
    pre = options.get("pre")
    characters = options.get("model") == "llama"
    defaults = {
        "pre": "default",
        "add_bos_token": characters or pre in _BEGINNING,
        "add_eos_token": False,
        "add_space_prefix": True,
        "unknown_token_id": 0,
        "merges": [],
    }
    return Description(options, str(file.path), defaults, lead=_LEAD)


def _texts(file: GGUFFile, described: Description) -> list[str]:
    """The text of each token."""
    tokens = described.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise described.error("tokens", "a list of texts")
    if file.has("token_embd.weight"):
        rows = file.shape("token_embd.weight")[:1]
        if rows != (len(tokens),):
            raise described.error("tokens", f"as many as there are embeddings, {rows}")
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]


def _kinds(described: Description, count: int) -> list[int]:
    """The kind of each token; all are normal if the file does not say."""
    if not described.says("token_type"):
        return [NORMAL] * count
    return numbers(described, "token_type", count)


def numbers(described: Description, name: str, count: int) -> list[Any]:
    """The first `count` numbers of a list that is an option."""
    found = described.get(name)
    numeric = isinstance(found, list) and all(
        is_whole(x) or (isinstance(x, float) and abs(x) < 1e30) for x in found
    )
    if not numeric or len(found) < count:
        raise described.error(name, f"a list of {count} numbers")
    return found[:count]


def _token(
    described: Description, name: str, count: int, default: int | None
) -> int | None:
    """A token that an option says, or the default if the vocabulary reaches to it."""
    if described.says(name):
        return described.whole(name, 0, count - 1)
    return default if default is not None and default < count else None


def _ends(described: Description, ids: dict[str, int], kinds: list[int]) -> set[int]:
    """Tokens that end a text; they and others that only control become of that kind."""
    found = {ids[token] for token in ENDS if token in ids}
    for name in ("eot", "eom", *_PARTS):
        said = _token(described, f"{name}_token_id", len(ids), None)
        if said is not None:
            found.add(said)
        else:
            found |= {ids[token] for token in _PARTS.get(name, ()) if token in ids}
    for index in found:
        kinds[index] = CONTROL
    for token in _SHOWN:
        if token in ids:
            kinds[ids[token]] = USER_DEFINED
    # Models whose turns end otherwise.
    call = bool({"<|call|>", "<|calls|>"} & set(ids))
    if call and {"<|return|>", "<|flush|>"} & set(ids) and "<|end|>" in ids:
        kinds[ids["<|end|>"]] = USER_DEFINED
        found.discard(ids["<|end|>"])
    if {"<|tool_response>", "</s>"} <= set(ids):
        kinds[ids["</s>"]] = NORMAL
        found.discard(ids["</s>"])
    return found
