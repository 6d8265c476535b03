"""Checks of a request, before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.validation import as_array, is_concrete


def check_prompts(prompts: Array, lengths: Array, vocab_size: int) -> int:
    """The number of rows; ValueError for prompts that are none.

    Args:
      prompts: [B, P] tokens.
      lengths: [B] tokens of each prompt.
      vocab_size: V.
    """
    if prompts.ndim != 2 or not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise ValueError(
            "prompts: expected integers of shape [B, P], got "
            f"{prompts.dtype} {prompts.shape}"
        )
    batch, width = prompts.shape
    if width == 0:
        raise ValueError("prompts: empty; a prompt has at least one token")
    if lengths.shape != (batch,):
        raise ValueError(
            f"prompt_lengths: expected shape ({batch},), got {lengths.shape}"
        )
    if not is_concrete(prompts, lengths):
        return batch
    lengths, tokens = np.asarray(lengths), np.asarray(prompts)
    if lengths.min(initial=1) < 1:
        raise ValueError("prompt_lengths: an empty prompt; at least one token each")
    if lengths.max(initial=1) > width:
        raise ValueError(
            f"prompt_lengths: {lengths.max()} tokens in prompts of width {width}"
        )
    used = tokens[np.arange(width)[None, :] < lengths[:, None]]
    if used.size and not 0 <= used.min() <= used.max() < vocab_size:
        raise ValueError(
            f"prompts: tokens must lie in [0, {vocab_size}), got "
            f"{used.min()}..{used.max()}"
        )
    return batch


def check_room(max_new_tokens: int | Sequence[int], batch: int) -> tuple[Array, int]:
    """The length cap of each row [B], and the largest; ValueError if one is below 1."""
    caps = np.asarray(max_new_tokens)
    if caps.shape not in ((), (batch,)) or caps.dtype.kind not in "iu":
        raise ValueError(
            f"max_new_tokens: expected an integer, or {batch} for as many rows, got "
            f"{max_new_tokens!r}"
        )
    if caps.min(initial=1) < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {caps.min()}")
    caps = np.broadcast_to(caps, (batch,)).astype(np.int32)
    return jax.device_put(caps), int(caps.max(initial=1))


def check_context(lengths: Array, caps: Array, context_length: int | None) -> None:
    """ValueError for a row that may grow beyond what the target was made for.

    Args:
      lengths: [B] tokens of each prompt.
      caps: [B] most new tokens of each row.
      context_length: of the target, None if it is not known.
    """
    if context_length is None or not is_concrete(lengths, caps):
        return
    lengths, caps = np.asarray(lengths), np.asarray(caps)
    if lengths.max(initial=0) > context_length:
        raise ValueError(
            f"prompt_lengths: a prompt of {lengths.max()} tokens is longer than the "
            f"target's context of {context_length}"
        )
    beyond = lengths + caps > context_length
    if beyond.any():
        length, cap = lengths[beyond][0], caps[beyond][0]
        raise ValueError(
            f"max_new_tokens: a prompt of {length} tokens and {cap} new ones are more "
            f"than the target's context of {context_length}; at most "
            f"{context_length - length} new ones fit"
        )


def end_tokens(eos_id: int | Sequence[int] | Array | None, batch: int) -> Array:
    """[B, E] tokens that end each row, -1 for none."""
    ends = as_array([] if eos_id is None else eos_id)
    # For numbers on the host no program is made.
    xp = jnp if isinstance(ends, jax.Array) else np
    ends = ends.astype(np.int32)
    if ends.ndim == 2 and len(ends) == batch:
        return ends
    if ends.ndim > 1:
        raise ValueError(
            f"eos_id: expected a token, several, or shape [{batch}, E], got shape "
            f"{ends.shape}"
        )
    ends = xp.atleast_1d(ends) if ends.size else xp.full(1, -1, xp.int32)
    return jnp.asarray(xp.broadcast_to(ends[None], (batch, len(ends))))
