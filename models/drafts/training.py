"""A draft in training: its parameters, and its logits on whole texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from globalres_jax.base import Array, Model, Params
from globalres_jax.models.drafts.architecture import (
    DraftFn,
    DraftWeights,
    random_parameters,
)
from globalres_jax.models.drafts.config import (
    LAYERS,
    DraftConfig,
    draft_shape,
    target_function,
)
from globalres_jax.models.drafts.target import embedding_table, head_table
from globalres_jax.models.layers import Drop, keep


def init_draft(key: Array, config: DraftConfig, target: Model) -> Params:
    """Parameters to begin training with, in float32.

    Kind "layers" begins with the target's own layers and last norm, the others with
    random layers; the last norm of a draft as wide as the target begins as the
    target's, and its output map, if it has one, as the identity.

    Args:
      key: random key.
      config: shape of the draft.
      target: the model it drafts for.

    Returns:
      A pytree of arrays: what is trained, and stored.

    Raises:
      ValueError: the config does not fit the target.
    """
    shape = draft_shape(config, target_function(target).config)
    params = random_parameters(key, shape)
    theirs = dict(nnx.to_flat_state(target.params))

    def begin(path: tuple, leaf):
        is_copy = path[0] == "blocks" and config.kind == LAYERS
        is_norm = path[0] == "norm" and shape.decoder.width == shape.width
        if not is_copy and not is_norm:
            return leaf
        return leaf.replace(jnp.array(theirs[path][...], jnp.float32))

    flat = nnx.to_flat_state(params)
    return nnx.from_flat_state((path, begin(path, leaf)) for path, leaf in flat)


def draft_logits(
    params: Params,
    config: DraftConfig,
    target: Model,
    tokens: Array,
    features: Array | None = None,
    lengths: Array | None = None,
    drop: Drop = keep,
) -> Array:
    """Logits [B, L, N] over `config.ids`, of whole texts; differentiable in `params`.

    Row l predicts the token after `tokens[:, l]` from tokens up to l and, of kind
    "feature", from the target's features up to l - 1. For the arguments see
    `draft_outputs`.
    """
    return draft_outputs(params, config, target, tokens, features, lengths, drop)[0]


def draft_outputs(
    params: Params,
    config: DraftConfig,
    target: Model,
    tokens: Array,
    features: Array | None = None,
    lengths: Array | None = None,
    drop: Drop = keep,
) -> tuple[Array, Array]:
    """Logits of whole texts, and the draft's own features that they come from.

    The features stand in for the target's where a draft goes on from itself.

    Args:
      params: as `init_draft` gives them; the computation is in their type.
      config: shape of the draft.
      target: the model it drafts for.
      tokens: [B, L], padded on the right with any tokens.
      features: [B, L, D] of the target, as `target_features` gives them: row l is the
        feature of `tokens[:, l]`, and is read beside the token after it. None for
        kinds other than "feature".
      lengths: [B] tokens of each text; L if None. What lies beyond means nothing.
      drop: what every layer's output goes through: `layers.dropout` in training.

    Returns:
      (logits [B, L, N] float32, features [B, L, D]).

    Raises:
      ValueError: the config does not fit the target, or features are missing.
    """
    weights, function = assemble(params, config, target)
    if config.reads_features != (features is not None):
        wanted = "needs" if config.reads_features else "does not read"
        raise ValueError(f"features: a draft of kind {config.kind!r} {wanted} them")
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    if lengths is not None and features is not None:
        held = positions < lengths[:, None]
        features = jnp.where(held[:, :, None], features, 0)
    if features is not None:
        features = shifted(features)
    mask = positions[:, :, None] >= positions[:, None, :]
    cache = function.init_cache(batch, length)
    x, _ = function.read(weights, tokens, features, positions, cache, mask, drop)
    return function.logits(weights, x), x


def shifted(features: Array) -> Array:
    """[B, L, D] the features of the token before each; zero before the first."""
    return jnp.pad(features, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def assemble(
    params: Params, config: DraftConfig, target: Model
) -> tuple[DraftWeights, DraftFn]:
    """All weights of a draft, the target's own among them, and its functions."""
    function = target_function(target)
    shape = draft_shape(config, function.config)
    kinds = {
        leaf.dtype for path, leaf in nnx.to_flat_state(params) if path[-1] == "weight"
    }
    dtype = jnp.dtype(jnp.result_type(*kinds))
    rows = head_table(target)[jnp.asarray(config.ids, jnp.int32)].astype(dtype)
    frozen = jax.lax.stop_gradient((embedding_table(target), rows))
    return DraftWeights(params, *frozen), DraftFn(shape, dtype, function.mesh)
