"""Where a draft begins: what its target knows, and what least squares find.

A draft of kind "feature" is to guess the target's next feature. Its input, attention
and MLP add to one sum, so that the last map of each can be fitted to what the sum still
lacks, one after the other, by linear least squares: seconds, in place of many steps.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from globalres_jax.base import Array, Model, Params
from globalres_jax.models.draft_training.teacher import Batch, Lessons
from globalres_jax.models.drafts import DraftConfig, init_draft
from globalres_jax.models.drafts.architecture import graph
from globalres_jax.models.drafts.config import DraftShape, draft_shape
from globalres_jax.models.drafts.target import embedding_table
from globalres_jax.models.drafts.training import shifted
from globalres_jax.models.layers import Step

#: Most texts that least squares look at, and how many at once.
_TEXTS, _AT_ONCE = 512, 8
#: The last maps of a layer.
_LAST = (("attention", "out"), ("mlp", "down"))
#: Ridge: the more inputs there are for a position, the less each is believed.
_RIDGE = 0.3


def begin_draft(
    key: Array, config: DraftConfig, target: Model, lessons: Lessons | None = None
) -> Params:
    """Parameters to begin training with: `init_draft`, and more of the target.

    Layers of kind "feature" that have the shape of the target's begin as its last ones.
    With texts, the last maps of a draft as wide as its target are fitted to them.

    Args:
      key: random key.
      config: shape of the draft.
      target: the model it drafts for.
      lessons: texts, with what the target says if that is kept; None for no fit.
    """
    params = init_draft(key, config, target)
    if not config.reads_features:
        return params
    shape = draft_shape(config, target.apply.config)
    params = _with_last_layers(params, config, target)
    if lessons is None or shape.output_map:
        return params
    stages = [("input",)]
    for layer in range(config.num_layers):
        stages += [("blocks", layer, *last) for last in _LAST]
    flat = dict(nnx.to_flat_state(params))
    for path in stages[1:]:
        weight = flat[(*path, "weight")]
        flat[(*path, "weight")] = weight.replace(jnp.zeros_like(weight[...]))
    for path in stages:
        found = _fit(nnx.from_flat_state(flat.items()), shape, target, lessons, path)
        weight = flat[(*path, "weight")]
        flat[(*path, "weight")] = weight.replace(found)
    return nnx.from_flat_state(flat.items())


def _with_last_layers(params: Params, config: DraftConfig, target: Model) -> Params:
    """The same with the target's last layers, if those are shaped as the draft's."""
    theirs = dict(nnx.to_flat_state(target.params))
    flat = dict(nnx.to_flat_state(params))
    first = target.apply.num_layers - config.num_layers
    found = {
        path: theirs.get(("blocks", first + path[1], *path[2:]))
        for path in flat
        if path[0] == "blocks"
    }
    if any(x is None or x.shape != flat[path].shape for path, x in found.items()):
        return params
    for path, leaf in found.items():
        flat[path] = flat[path].replace(jnp.array(leaf[...], jnp.float32))
    return nnx.from_flat_state(flat.items())


def _fit(
    params: Params, shape: DraftShape, target: Model, lessons: Lessons, stage: tuple
) -> Array:
    """The weight [out, in] of the map at a path, by ridge regression."""
    at_once = min(_AT_ONCE, len(lessons))
    last = min(len(lessons), _TEXTS) - at_once
    gram = product = count = 0
    for start in range(0, last + 1, at_once):
        batch = lessons.rows(np.arange(start, start + at_once))
        sums = _sums(target, params, batch, shape, stage)
        gram, product = gram + np.float64(sums[0]), product + np.float64(sums[1])
        count += int(sums[2])
    size = len(gram)
    ridge = _RIDGE * np.trace(gram) / max(count, 1)
    found = np.linalg.solve(gram + ridge * np.eye(size), product)
    return jnp.asarray(found.T, jnp.float32)


@functools.partial(jax.jit, static_argnames=("shape", "stage"))
def _sums(
    target: Model, params: Params, batch: Batch, shape: DraftShape, stage: tuple
) -> tuple[Array, Array, Array]:
    """A^T A, A^T y and the number of positions: of what a map reads, and what lacks."""
    batch = batch.with_teacher(target)
    inputs, missing = _stage(params, target, batch, shape, stage)
    # The first token has no feature before it.
    places = jnp.arange(batch.tokens.shape[1])[None]
    counted = jnp.asarray(batch.counted) & (places > 0)
    inputs = jnp.where(counted[:, :, None], inputs, 0).reshape(-1, inputs.shape[-1])
    missing = missing.reshape(-1, missing.shape[-1])
    return inputs.T @ inputs, inputs.T @ missing, counted.sum()


def _stage(
    params: Params, target: Model, batch: Batch, shape: DraftShape, stage: tuple
) -> tuple[Array, Array]:
    """What the map at a path reads [B, L, in], and what the sum lacks [B, L, D]."""
    module = nnx.merge(graph(shape), params)
    # The last norm takes the size of the sum away, and multiplies by its scale.
    scale = module.norm.scale[...]
    wanted = batch.features / jnp.where(scale == 0, 1, scale)[None, None]
    embedded = embedding_table(target)[batch.tokens].astype(jnp.float32)
    parts = (
        module.embedding_norm(embedded),
        module.feature_norm(shifted(batch.features)),
    )
    inputs = jnp.concatenate(parts, axis=-1)
    if stage == ("input",):
        return inputs, wanted
    x = module.input(inputs)
    for layer, block in enumerate(module.blocks):
        read = _mixed(block, block.attention_norm(x))
        if stage == ("blocks", layer, "attention", "out"):
            return read, wanted - x
        x += block.attention.out(read)
        mlp, normal = block.mlp, block.mlp_norm(x)
        read = mlp.activation(mlp.gate(normal)) * mlp.up(normal)
        if stage == ("blocks", layer, "mlp", "down"):
            return read, wanted - x
        x += mlp.down(read)
    raise ValueError(f"stage: {stage} is no last map of {shape}")


def _mixed(block: nnx.Module, x: Array) -> Array:
    """What attention hands to its last map, [B, L, in], in whole texts."""
    attention = block.attention
    out, size = attention.out, attention.out.weight.shape[1]
    batch, length = x.shape[:2]
    heads = attention.shape.num_kv_heads, attention.shape.head_dim
    empty = jnp.zeros((batch, length, *heads), x.dtype)
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    mask = positions[:, :, None] >= positions[:, None, :]
    start = jnp.zeros(batch, jnp.int32)
    attention.out = lambda x: x
    mixed, _, _ = attention(x, Step(positions, start, positions, mask), empty, empty)
    attention.out = out
    return mixed.reshape(batch, length, size)
