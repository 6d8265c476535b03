"""Where a draft begins: with what its target knows already."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from globalres_jax.base import Array, Model, Params
from globalres_jax.models.drafts import DraftConfig, init_draft


def begin_draft(key: Array, config: DraftConfig, target: Model) -> Params:
    """Parameters to begin training with: `init_draft`, and more of the target.

    Layers of a draft that have the shape of the target's begin as its last ones. The
    map of kind "feature" begins as the identity of the feature, which the target's head
    reads, with the token's embedding beside it.

    Args:
      key: random key.
      config: shape of the draft.
      target: the model it drafts for.
    """
    params = init_draft(key, config, target)
    if not config.reads_features:
        return params
    theirs = dict(nnx.to_flat_state(target.params))
    depth = target.apply.num_layers
    flat, started = nnx.to_flat_state(params), []
    copied = all(
        _their_path(path, config.num_layers, depth) in theirs
        and theirs[_their_path(path, config.num_layers, depth)].shape == leaf.shape
        for path, leaf in flat
        if path[0] == "blocks"
    )
    for path, leaf in flat:
        if path[0] == "blocks" and copied:
            value = theirs[_their_path(path, config.num_layers, depth)][...]
            leaf = leaf.replace(jnp.array(value, jnp.float32))
        started.append((path, leaf))
    return nnx.from_flat_state(started)


def _their_path(path: tuple, count: int, depth: int) -> tuple:
    """The path of the same parameter in the target's last `count` layers."""
    return ("blocks", depth - count + path[1], *path[2:])
