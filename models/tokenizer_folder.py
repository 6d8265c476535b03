"""The tokenizer of a folder in Hugging Face's layout.

`tokenizer.json` is not all of it: special and added tokens, chat templates and some
rules for spaces stand in files beside it. What wins over what is as in `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from globalres_jax.models.safetensors_folder import read_json
from globalres_jax.models.tokenizer import AddedToken, Tokenizer

OPTIONS, CONFIG = "tokenizer_config.json", "config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "chat_templates"

#: Special tokens that every tokenizer may name, in their order.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token")
NAMES = (*NAMES, "cls_token", "mask_token")

_END = "<|endoftext|>"
#: Special tokens of a class of tokenizers where the folder does not name them.
_CLASS_TOKENS = {
    "LlamaTokenizer": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    },
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
}


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizer.json`, and the options and templates that lie beside it.

    Raises:
      ValueError: a file is not what it should be; it is named.
    """
    folder = path.parent
    options = _read(folder / OPTIONS)
    definition = path.read_text("utf-8")
    try:
        described = json.loads(definition)
        kind = _class_name(options, _read(folder / CONFIG), described)
        changed = _with_spaces(described, kind, options)
        if changed is not None:
            described, definition = changed, json.dumps(changed, ensure_ascii=False)
        special, extra = _special_tokens(folder, options, described, kind)
        default, named = _templates(folder, options)
        tokenizer = Tokenizer(
            definition,
            default,
            tuple((name, token.content) for name, token in special.items()),
            _added_tokens(folder, options, described, special, extra),
            named,
            bool(options.get("split_special_tokens", False)),
            str(folder),
        )
        _ = tokenizer.vocab_size
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"source: {path} is no tokenizer: {error}") from error
    return tokenizer


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _class_name(
    options: Mapping[str, Any], config: Mapping[str, Any], described: Mapping[str, Any]
) -> str | None:
    """The class that reads the folder, where it is one that changes something."""
    name = options.get("tokenizer_class") or config.get("tokenizer_class") or ""
    name = str(name).removesuffix("Fast")
    # Many a byte-level tokenizer has been saved under this name.
    if name == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(
        [described.get("pre_tokenizer"), described.get("decoder")]
    ):
        return None
    return name if name in _CLASS_TOKENS else None


def _with_spaces(
    described: dict[str, Any], kind: str | None, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The definition with the class's rules for spaces; None if it says the same."""
    if kind == "LlamaTokenizer":
        prefix = options.get("add_prefix_space")
        scheme = "always" if options.get("legacy", False) else "first"
        scheme = "never" if prefix is False else scheme
        spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if scheme != "never":
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        changes = {
            "normalizer": None,
            "pre_tokenizer": {**spaces, "split": False},
            "decoder": {"type": "Sequence", "decoders": decoders},
        }
        return _changed(described, changes)
    if kind in ("Qwen2Tokenizer", "GPT2Tokenizer") and options.get("add_prefix_space"):
        before = json.dumps(described.get("pre_tokenizer"))
        after = before.replace('"add_prefix_space": false', '"add_prefix_space": true')
        return _changed(described, {"pre_tokenizer": json.loads(after)})
    return None


def _changed(described: dict, changes: dict) -> dict | None:
    same = all(described.get(name) == value for name, value in changes.items())
    return None if same else {**described, **changes}


def _special_tokens(
    folder: Path,
    options: Mapping[str, Any],
    described: Mapping[str, Any],
    kind: str | None,
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Special tokens by name, and those without one."""
    found = dict(options)
    if not found.get("extra_special_tokens") and "additional_special_tokens" in found:
        found["extra_special_tokens"] = found.pop("additional_special_tokens")
    if "added_tokens_decoder" not in options:
        # Of the time before one file had them all; its word counts more.
        earlier = _read(folder / SPECIAL)
        if "extra_special_tokens" not in earlier:
            extra = earlier.pop("additional_special_tokens", None)
            if extra is not None:
                earlier["extra_special_tokens"] = extra
        found.update(earlier)
    padding = described.get("padding") or {}
    if "pad_token" in padding:
        found.setdefault("pad_token", padding["pad_token"])
    for name, token in _CLASS_TOKENS.get(kind or "", {}).items():
        found.setdefault(name, token)
    others = [
        name
        for name, token in found.items()
        if name.endswith("_token") and name not in NAMES and _is_token(token)
    ]
    named = {
        name: _token(found[name])
        for name in (*NAMES, *others)
        if _is_token(found.get(name))
    }
    extra = found.get("extra_special_tokens") or []
    if isinstance(extra, dict):
        named |= {name: _token(token) for name, token in extra.items()}
        extra = []
    return named, [_token(token) for token in extra]


def _added_tokens(
    folder: Path,
    options: Mapping[str, Any],
    described: Mapping[str, Any],
    special: Mapping[str, AddedToken],
    extra: list[AddedToken],
) -> tuple[AddedToken, ...]:
    """What the definition lacks: by number first, then the special tokens."""
    present = {_token(entry) for entry in described.get("added_tokens") or []}
    wanted: list[AddedToken] = []
    if "added_tokens_decoder" in options:
        numbered = options["added_tokens_decoder"]
        order = sorted(numbered, key=int)
        wanted = [_token(numbered[index], special=False) for index in order]
    else:
        numbered = _read(folder / ADDED)
        known = {token.content for token in (*special.values(), *extra)}
        for content in sorted(numbered, key=numbered.get):
            is_special = content in known
            flags = {"special": is_special, "normalized": not is_special}
            wanted.append(AddedToken(content, **flags))
        written = {token.content for token in present}
        wanted = [token for token in wanted if token.content not in written]
    found = [token for token in wanted if token not in present]
    contents = {token.content for token in (*present, *found)}
    for token in (*special.values(), *extra):
        if token.content not in contents:
            found.append(token)
            contents.add(token.content)
    return tuple(found)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)


def _token(value: str | Mapping[str, Any], special: bool = True) -> AddedToken:
    """A token as a file writes it: its text, or that and its flags."""
    if isinstance(value, str):
        return AddedToken(value)
    flags = {name: bool(value[name]) for name in _FLAGS if name in value}
    flags.setdefault("special", special)
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(str(value["content"]), **flags)


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _templates(
    folder: Path, options: Mapping[str, Any]
) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The default template, or None, and the others; files before options."""
    found = options.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}
    if isinstance(found, str):
        found = {"default": found}
    beside = sorted((folder / TEMPLATES).glob("*.jinja"))
    files = {file.stem: file.read_text("utf-8") for file in beside}
    if (folder / TEMPLATE).is_file():
        files = {"default": (folder / TEMPLATE).read_text("utf-8"), **files}
    named = files or dict(found or {})
    return named.pop("default", None), tuple(named.items())
