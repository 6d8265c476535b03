"""Checks of a request, before anything is compiled."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.decoding.logit_bias import LogitBias
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.validation import LARGEST, as_array, is_concrete, wrong_kind


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
    if batch == 0:
        raise ValueError("prompts: no rows; there must be at least one prompt")
    if width == 0:
        raise ValueError("prompts: empty; a prompt has at least one token")
    if lengths.shape != (batch,):
        raise ValueError(
            f"prompt_lengths: expected shape ({batch},), got {lengths.shape}"
        )
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"prompt_lengths: expected integers, got {lengths.dtype}")
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


#: More new tokens than any model was made for.
MOST_NEW_TOKENS = 2**24


def check_room(max_new_tokens: int | Sequence[int], batch: int) -> tuple[Array, int]:
    """The length cap of each row [B], and the largest; ValueError if one is below 1."""
    caps = np.asarray(max_new_tokens)
    # Numbers beyond 64 bits are objects.
    is_integer = caps.dtype.kind in "iu" or (
        caps.dtype.kind == "O" and all(type(cap) is int for cap in caps.flat)
    )
    if caps.shape not in ((), (batch,)) or not is_integer:
        raise ValueError(
            f"max_new_tokens: expected an integer, or {batch} for as many rows, got "
            f"{max_new_tokens!r:.60}"
        )
    if caps.min(initial=1) < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {caps.min()}")
    if caps.max(initial=1) > MOST_NEW_TOKENS:
        raise ValueError(
            f"max_new_tokens: must be at most {MOST_NEW_TOKENS}, got {caps.max()}"
        )
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


def check_options(options: SamplingOptions, caps: Array, vocab_size: int) -> None:
    """ValueError for a bias of tokens that are none, and for a least length above most.

    Args:
      options: as they came.
      caps: [B] most new tokens of each row.
      vocab_size: V.
    """
    if isinstance(options.logit_bias, LogitBias):
        options.logit_bias.check(vocab_size)
    check_least(options.min_new_tokens, caps)


def check_least(least: Any, caps: Array) -> None:
    """ValueError where a row is to have more than its most new tokens, `caps [B]`."""
    if least is None or not is_concrete(least, caps):
        return
    least, caps = np.asarray(least), np.asarray(caps)
    if least.shape not in ((), caps.shape):
        return  # its shape is refused elsewhere
    beyond = least > caps
    if beyond.any():
        shown = np.broadcast_to(least, caps.shape)[beyond][0]
        raise ValueError(
            f"min_new_tokens: {shown} are more than max_new_tokens, {caps[beyond][0]}"
        )


def end_tokens(eos_id: int | Sequence[int] | Array | None, batch: int) -> Array:
    """[B, E] tokens that end each row, -1 for none."""
    ends = as_array(() if eos_id is None else eos_id, "eos_id")
    if (
        ends.size
        and ends.dtype != object
        and not jnp.issubdtype(ends.dtype, jnp.integer)
    ):
        raise TypeError(f"eos_id: expected integers, got {eos_id!r:.60}")
    if is_concrete(ends) and ends.size:
        _check_ends(np.asarray(ends))
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


def _check_ends(ends: np.ndarray) -> None:
    if ends.dtype == object and not all(type(end) is int for end in ends.flat):
        raise TypeError(f"eos_id: expected integers, got {ends.tolist()!r:.60}")
    if ends.min() < -LARGEST or ends.max() > LARGEST:
        raise ValueError(f"eos_id: {ends.min()}..{ends.max()} are no tokens")


def row_keys(key: Array, batch: int) -> Array:
    """[B] typed keys of the rows; row i of one key uses `fold_in(key, i)`.

    Args:
      key: one key or [B], of `jax.random.key` or of `jax.random.PRNGKey`, whose keys
        are arrays of numbers.
      batch: B.

    Raises:
      TypeError: no key.
      ValueError: another number of keys.
    """
    wanted = "expected a key, such as jax.random.key(0), or one for each row"
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key: {wanted}, got {key!r:.60} ({type(key).__name__})")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        try:
            key = jax.random.wrap_key_data(jnp.asarray(key))
        except (TypeError, ValueError) as error:
            found = f"{key.dtype} {key.shape}"
            raise TypeError(f"key: {wanted}, got an array {found}") from error
    if key.ndim == 0:
        return _keys_of_rows(key, np.arange(batch, dtype=np.int32))
    if key.shape != (batch,):
        raise ValueError(f"key: expected one key or {batch}, got shape {key.shape}")
    return key


@jax.jit
def _keys_of_rows(key: Array, rows: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def check_model(name: str, model: Any) -> None:
    """TypeError for what is no model; `models.load` makes one of a name."""
    parts = ("params", "apply", "init_cache", "vocab_size")
    if inspect.isclass(model) or not all(hasattr(model, part) for part in parts):
        raise wrong_kind(name, "a Model (`models.load` loads one)", model)


def check_alternatives(count: int, vocab_size: int) -> None:
    """ValueError for more alternatives to a token than there are tokens."""
    if count > vocab_size:
        raise ValueError(
            f"top_log_probabilities: {count} of a vocabulary of {vocab_size} tokens"
        )


def check_drafter(draft: Any) -> None:
    """TypeError for what drafts nothing: no model, no `Drafter`."""
    parts = ("check", "start", "propose", "commit")
    if inspect.isclass(draft) or not all(hasattr(draft, part) for part in parts):
        raise wrong_kind(
            "draft", "a Model, a Drafter such as PromptLookup(), or None", draft
        )


def check_features(target: Any, drafter: Any) -> None:
    """ValueError for a drafter that reads features which the target does not show."""
    if not getattr(drafter, "reads_features", False):
        return
    if not hasattr(target.apply, "with_features"):
        raise ValueError(
            "draft: reads the target's features, and the function of this target has "
            "no `with_features`; `models.load` loads targets that have it"
        )
    shown, read = (getattr(x, "feature_size", None) for x in (target.apply, drafter))
    if None not in (shown, read) and shown != read:
        raise ValueError(
            f"draft: reads features of {read} numbers, and the target's have {shown}: "
            "it was made for another target"
        )
