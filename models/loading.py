"""Where a model comes from: a name, a folder, a GGUF file, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from globalres_jax.base import Model, NewCache
from globalres_jax.models.decoder import DecoderFn
from globalres_jax.models.gemma import GEMMA2, GEMMA3
from globalres_jax.models.hub import GEMMA, download, packaged
from globalres_jax.models.llama import LLAMA
from globalres_jax.models.mistral import MISTRAL
from globalres_jax.models.parameters import TensorSource, load_parameters
from globalres_jax.models.placement import default_dtype
from globalres_jax.models.qwen import QWEN2, QWEN3
from globalres_jax.models.safetensors_folder import (
    SafetensorsFolder,
    read_json,
)
from globalres_jax.models.tokenizer import TOKENIZER, Tokenizer

END_OF_TEXT = "<|endoftext|>"

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
        one folder above; a `.gguf` file; or the id of a model on the Hugging Face hub,
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
    dtype = default_dtype(mesh) if dtype is None else jnp.dtype(dtype)
    path = packaged() if source == GEMMA else Path(NAMED.get(str(source), source))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"source: no such file: {path}")
        return _from_gguf(path, dtype, mesh)
    if not path.is_dir():
        path = download(str(source), (*NAMED, GEMMA))
    return _from_folder(path, dtype, mesh)


def _family_model(source: TensorSource, dtype, mesh, tokenizer, ends) -> Model:
    """The model in an open checkpoint, by its family."""
    kind = "gguf" if source.scheme == "gguf" else "architectures"
    for family in FAMILIES:
        if source.architecture in getattr(family, kind):
            break
    else:
        known = [name for family in FAMILIES for name in getattr(family, kind)]
        raise ValueError(
            f"source: {source.path} has architecture {source.architecture!r}; "
            f"supported: {', '.join(known)}"
        )
    described = source.description()
    config = family.configure(described)
    function = DecoderFn(config, dtype, mesh)
    return Model(
        params=load_parameters(source, family, config, dtype, mesh),
        apply=function,
        init_cache=NewCache(function),
        vocab_size=config.vocab_size,
        tokenizer=tokenizer,
        eos_id=ends,
        context_length=described.context_length,
    )


def _from_gguf(path: Path, dtype, mesh) -> Model:
    # The package that reads these files is slow to import, and only they need it.
    from globalres_jax.models.gguf_file import GGUFFile
    from globalres_jax.models.gguf_tokenizer import end_tokens, read_tokenizer

    file = GGUFFile(path)
    tokenizer = read_tokenizer(file)
    return _family_model(file, dtype, mesh, tokenizer, end_tokens(file) or None)


def _from_folder(folder: Path, dtype, mesh) -> Model:
    source = SafetensorsFolder(folder)
    tokenizer = _find_tokenizer(folder, folder.parent)
    return _family_model(source, dtype, mesh, tokenizer, _ends(source, tokenizer))


def _ends(
    source: SafetensorsFolder, tokenizer: Tokenizer | None
) -> tuple[int, ...] | None:
    """Tokens that end a text, by what the folder says first."""
    options = source.description().options
    places = [options.get("eos_token_id")]
    if (source.path / "generation_config.json").is_file():
        generation = read_json(source.path / "generation_config.json")
        places.insert(0, generation.get("eos_token_id"))
    if tokenizer is not None:
        token = dict(tokenizer.special_tokens).get("eos_token")
        places.append(None if token is None else tokenizer.token_id(token))
    found = next((ends for ends in places if ends is not None), None)
    return (found,) if isinstance(found, int) else found and tuple(found)


def _find_tokenizer(*folders: Path) -> Tokenizer | None:
    """The tokenizer in the first of the folders that has one.

    A pair of models that were trained together shares one, a folder above both.
    """
    for folder in folders:
        if (folder / TOKENIZER).is_file():
            return Tokenizer.from_file(folder / TOKENIZER)
    return None
