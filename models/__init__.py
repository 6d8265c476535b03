"""Models: architectures, checkpoints, and the pair that ships with the package.

model = globalres_jax.models.load("embedded")
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
from globalres_jax.models.checkpoint import TOKENIZER, load_config, load_params
from globalres_jax.models.tokenizer import Tokenizer
from globalres_jax.models.transformer import TransformerFn

from globalres_jax.base import Model

END_OF_TEXT = "<|endoftext|>"

_EMBEDDED = Path(__file__).parent / "embedded"
NAMED = {"embedded": _EMBEDDED / "target", "embedded-draft": _EMBEDDED / "draft"}


def load(source: str | os.PathLike, dtype=None, mesh=None) -> Model:
    """Loads a model.

    Args:
      source: "embedded" or "embedded-draft" (a Shakespeare pair that ships with the
        package), or a folder with `config.json`, `model.safetensors`, and a
        `tokenizer.json` in it or beside it.
      dtype: of the parameters; float32 if None.
      mesh: a `jax.sharding.Mesh` to replicate the parameters over, or None.

    Returns:
      A `Model`.

    Raises:
      FileNotFoundError: the source, or a file of it, is not there.
      ValueError: a file cannot be read or does not fit.
    """
    folder = NAMED.get(str(source), Path(source))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"source: {str(source)!r} is no folder; known names: {', '.join(NAMED)}"
        )
    config = load_config(folder)
    params = load_params(folder, config, jnp.float32 if dtype is None else dtype)
    if mesh is not None:
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        params = jax.device_put(params, everywhere)
    function = TransformerFn(config)
    tokenizer = _find_tokenizer(folder)
    return Model(
        params=params,
        apply=function,
        init_cache=function.init_cache,
        vocab_size=config.vocab_size,
        tokenizer=tokenizer,
        eos_id=None if tokenizer is None else tokenizer.token_id(END_OF_TEXT),
    )


def _find_tokenizer(folder: Path) -> Tokenizer | None:
    for place in (folder, folder.parent):
        if (place / TOKENIZER).is_file():
            return Tokenizer.from_file(place / TOKENIZER)
    return None
