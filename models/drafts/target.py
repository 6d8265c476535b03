"""What a draft takes from its target: features, embedding, rows of the head."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Model
from globalres_jax.models.drafts.config import target_function
from globalres_jax.models.layers import project, soft_cap

#: Positions whose logits over the vocabulary are held at once.
_CHUNK = 256


def embedding_table(target: Model) -> Array:
    """[V, D] the target's token embedding: its own array."""
    target_function(target)
    return target.params["embedding"]["weight"][...]


def head_table(target: Model) -> Array:
    """[V, D] the target's output head: its own array."""
    tied = target_function(target).config.tied
    return target.params["embedding" if tied else "head"]["weight"][...]


def head_logits(target: Model, features: Array, ids: Array) -> Array:
    """The target's logits of some tokens, from its features.

    Args:
      target: the model.
      features: [..., D] as `target_features` gives them.
      ids: [N] tokens.

    Returns:
      [..., N] float32, what the target's own logits hold at `ids`.
    """
    rows = head_table(target)[jnp.asarray(ids)]
    logits = project(features.astype(rows.dtype), rows).astype(jnp.float32)
    return soft_cap(logits, target_function(target).config.logit_cap)


def target_features(
    target: Model, tokens: Array, lengths: Array | None = None
) -> tuple[Array, Array]:
    """What a target says of whole texts, compactly.

    Row l is about the token that follows `tokens[:, l]`. The probability of token v
    there, at temperature 1, is `exp(head_logits(target, features, [v]) -
    log_normalizer)`.

    Args:
      target: a model that `load` has loaded.
      tokens: [B, L], padded on the right with any tokens.
      lengths: [B] tokens of each text; L if None.

    Returns:
      (features [B, L, D], log_normalizer [B, L] float32): what the target's head
      multiplies, after its last norm, and the logarithm of the sum of `exp(logits)`
      over the vocabulary. Both are 0 beyond the lengths.

    Raises:
      ValueError: the target is no model of the families here.
    """
    target_function(target)
    tokens = jnp.asarray(tokens)
    if lengths is None:
        lengths = jnp.full(len(tokens), tokens.shape[1])
    return _features(target, tokens, jnp.asarray(lengths))


@jax.jit
def _features(target: Model, tokens: Array, lengths: Array) -> tuple[Array, Array]:
    function = target_function(target)
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    mask = positions[:, :, None] >= positions[:, None, :]
    cache = function.init_cache(batch, length)
    apply = function.with_features
    _, features, _ = apply(target.params, tokens, positions, cache, mask)
    held = positions < lengths[:, None]
    features = jnp.where(held[:, :, None], features, 0)
    return features, jnp.where(held, log_normalizer(target, features), 0)


def log_normalizer(target: Model, features: Array) -> Array:
    """[...] log sum_v exp(logit_v) over the vocabulary, of `features [..., D]`."""
    rows, cap = head_table(target), target_function(target).config.logit_cap
    flat = features.reshape(-1, features.shape[-1])
    size = min(_CHUNK, len(flat))
    padded = jnp.pad(flat, ((0, -len(flat) % size), (0, 0)))

    @functools.partial(jax.checkpoint)
    def of_chunk(x: Array) -> Array:
        logits = project(x, rows).astype(jnp.float32)
        return jax.nn.logsumexp(soft_cap(logits, cap), axis=-1)

    found = jax.lax.map(of_chunk, padded.reshape(-1, size, flat.shape[-1]))
    return found.reshape(-1)[: len(flat)].reshape(features.shape[:-1])
