"""A draft at work: a `Drafter` that shares its target's arrays."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from globalres_jax.base import Array, Drafter, Model, Params
from globalres_jax.cache import NewCache
from globalres_jax.drafters import FeatureDrafter, ModelDrafter
from globalres_jax.models.drafts.architecture import DraftFn, DraftWeights
from globalres_jax.models.drafts.config import (
    DraftConfig,
    draft_shape,
    target_function,
)
from globalres_jax.models.drafts.folder import read_draft
from globalres_jax.models.drafts.target import embedding_table, head_table


def load_draft(folder: str | os.PathLike, target: Model) -> Drafter:
    """Loads a draft that `save_draft` has written, for `generate` to draft with.

    Args:
      folder: where it lies.
      target: the model it drafts for, which `load` has loaded.

    Raises:
      FileNotFoundError: there is no such folder, or a file of it is missing.
      ValueError: it holds no draft, is broken, or does not fit the target.
    """
    stored = read_draft(folder, target)
    return make_drafter(stored.params, stored.config, target)


def make_drafter(params: Params, config: DraftConfig, target: Model) -> Drafter:
    """A drafter of these parameters.

    Weights are in the target's type; norms and biases stay as they are. The rows of the
    head are gathered once, the embedding is the target's own array.

    Args:
      params: as `init_draft` gives them.
      config: shape of the draft.
      target: the model it drafts for.

    Raises:
      ValueError: the config does not fit the target.
    """
    theirs = target_function(target)
    shape = draft_shape(config, theirs.config)
    function = DraftFn(shape, theirs.dtype, theirs.mesh)

    def place(x: Array) -> Array:
        if theirs.mesh is None:
            return x
        return jax.device_put(x, NamedSharding(theirs.mesh, PartitionSpec()))

    def as_used(path: tuple, leaf):
        is_weight = path[-1] == "weight"
        value = leaf[...].astype(theirs.dtype) if is_weight else leaf[...]
        return path, leaf.replace(place(value))

    own = nnx.from_flat_state(as_used(*pair) for pair in nnx.to_flat_state(params))
    ids = jnp.asarray(config.ids, jnp.int32)
    head = place(head_table(target)[ids])
    model = Model(
        params=DraftWeights(own, embedding_table(target), head),
        apply=function,
        init_cache=NewCache(function),
        vocab_size=target.vocab_size,
    )
    drafter = FeatureDrafter if config.reads_features else ModelDrafter
    return drafter(model, place(ids))
