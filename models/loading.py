"""Where a model comes from: a name, a folder, a GGUF file, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from globalres_jax.base import Model
from globalres_jax.cache import NewCache
from globalres_jax.models.decoder import DecoderFn
from globalres_jax.models.description import Description, is_whole, shown
from globalres_jax.models.drafts.folder import is_draft
from globalres_jax.models.family import Family
from globalres_jax.models.gemma import GEMMA2, GEMMA3
from globalres_jax.models.hub import GEMMA, download, packaged
from globalres_jax.models.llama import LLAMA
from globalres_jax.models.mistral import MISTRAL
from globalres_jax.models.parameters import (
    TensorSource,
    check_depth,
    load_parameters,
    settle_head,
)
from globalres_jax.models.placement import default_dtype
from globalres_jax.models.qwen import QWEN2, QWEN3
from globalres_jax.models.rope_options import context_length
from globalres_jax.models.safetensors_folder import SafetensorsFolder, read_json
from globalres_jax.models.tokenizer import TOKENIZER, Tokenizer

END_OF_TEXT = "<|endoftext|>"
GENERATION, _EOS = "generation_config.json", "eos_token_id"

_EMBEDDED = Path(__file__).parent / "embedded"
NAMED = {"embedded": _EMBEDDED / "target", "embedded-draft": _EMBEDDED / "draft"}

#: The families that can be loaded.
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)


def load(source: str | os.PathLike, dtype=None, mesh: Mesh | None = None) -> Model:
    """Loads a model.

    Args:
      source: "embedded" or "embedded-draft" (a Shakespeare pair that ships with the
        package); "gemma3-270m" (with the extra `[gemma3]`); a folder with
        `config.json` and safetensors, whole or sharded, and a `tokenizer.json` there or
        one folder above; a `.gguf` file, the first if a model was split into several;
        or the id of a model on the Hugging Face hub,
        "owner/name".
      dtype: of weights and cache; if None float32 on a CPU, bfloat16 on accelerators.
        Norms stay float32.
      mesh: devices to spread the parameters over (`globalres_jax.sharding`), or None.

    Returns:
      A `Model`.

    Raises:
      FileNotFoundError: the source, or a file of it, is not there.
      ValueError: a file cannot be read or does not fit.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"source: must be a name or a path; got {shown(source)}")
    dtype = default_dtype(mesh) if dtype is None else jnp.dtype(dtype)
    path = packaged() if source == GEMMA else Path(NAMED.get(str(source), source))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"source: no such file: {path}")
        return _from_gguf(path, dtype, mesh)
    if not path.is_dir():
        path = download(str(source), (*NAMED, GEMMA))
    return _from_folder(path, dtype, mesh)


def _model(source: TensorSource, family: Family, tokenizer, ends, dtype, mesh) -> Model:
    """The model in an open checkpoint of a family.

    `ends(described)` are the tokens that end a text.
    """
    gguf = source.scheme == "gguf"
    defaults = family.gguf_defaults if gguf else family.defaults
    described = source.description(defaults)
    check_depth(source, described)
    config = family.configure(described)
    context = context_length(described, family.stretched_context)
    ends = ends(described)
    config, names = settle_head(source, family, config)
    function = DecoderFn(config, dtype, mesh)
    return Model(
        params=load_parameters(source, family, config, names, dtype, mesh),
        apply=function,
        init_cache=NewCache(function),
        vocab_size=config.vocab_size,
        tokenizer=tokenizer,
        eos_id=ends,
        context_length=context,
    )


def _from_gguf(path: Path, dtype, mesh) -> Model:
    # The package that reads these files is slow to import, and only they need it.
    from globalres_jax.models.gguf_file import GGUFFile
    from globalres_jax.models.gguf_tokenizer import read_tokenizer
    from globalres_jax.models.gguf_vocabulary import read_vocabulary

    file = GGUFFile(path)
    family = _family(file, "architecture", file.architecture, "gguf")
    vocabulary = read_vocabulary(file)
    tokenizer = read_tokenizer(file, vocabulary)
    ends = vocabulary.ends or None
    return _model(file, family, tokenizer, lambda _: ends, dtype, mesh)


def _from_folder(folder: Path, dtype, mesh) -> Model:
    if is_draft(folder):
        raise ValueError(
            f"source: {folder} holds a draft, which is no model without its target; "
            "load both with `load_pair(target, draft)`"
        )
    source = SafetensorsFolder(folder)
    family = _folder_family(source)
    tokenizer = _find_tokenizer(folder, folder.parent)
    return _model(
        source,
        family,
        tokenizer,
        lambda described: _ends(folder, described, tokenizer),
        dtype,
        mesh,
    )


def _folder_family(source: SafetensorsFolder) -> Family:
    """The family by the architecture, or by the `model_type` where that is not said.

    Raises:
      ValueError: it is none of those known here, or the two differ.
    """
    kind, name = source.model_type, source.architecture
    if name is None and kind is not None:
        return _family(source, "model_type", kind, "model_types")
    family = _family(source, "architecture", name, "architectures")
    known = {kind for family in FAMILIES for kind in family.model_types}
    if kind in known and kind not in family.model_types:
        raise ValueError(
            f"source: {source.path}: architectures says {name!r}, but model_type says "
            f"{kind!r}"
        )
    return family


def _family(source: TensorSource, what: str, name: str | None, names: str) -> Family:
    """The family that has a name among its `names`."""
    for family in FAMILIES:
        if name in getattr(family, names):
            return family
    known = [known for family in FAMILIES for known in getattr(family, names)]
    raise ValueError(
        f"source: {source.path} has {what} {name!r}; supported: {', '.join(known)}"
    )


def _ends(
    folder: Path, described: Description, tokenizer: Tokenizer | None
) -> tuple[int, ...] | None:
    """Tokens that end a text, by what the folder says first."""
    places = [described]
    if (folder / GENERATION).is_file():
        said = read_json(folder / GENERATION)
        places.insert(0, Description(said, str(folder / GENERATION)))
    most = described.whole("vocab_size") - 1
    for place in places:
        if _EOS in place.options and place.says(_EOS):
            return token_ids(place, _EOS, most)
    special = {} if tokenizer is None else dict(tokenizer.special_tokens)
    if "eos_token" in special:
        end = tokenizer.token_id(special["eos_token"])
        if end is not None:
            return (end,)
    # One that is null is said to be none.
    if _EOS in described.options or not described.says(_EOS):
        return None
    return token_ids(described, _EOS, most)


def token_ids(place: Description, name: str, most: int) -> tuple[int, ...] | None:
    """The tokens up to `most` that an option says, one or several."""
    found = place.get(name)
    found = found if isinstance(found, list) else [found]
    if not all(is_whole(token) and 0 <= token <= most for token in found):
        raise place.error(name, f"a token or a list of tokens, each from 0 to {most}")
    return tuple(found) or None


def _find_tokenizer(*folders: Path) -> Tokenizer | None:
    """The tokenizer in the first of the folders that has one.

    A pair of models that were trained together shares one, a folder above both.
    """
    for folder in folders:
        if (folder / TOKENIZER).is_file():
            return Tokenizer.from_file(folder / TOKENIZER)
    return None
