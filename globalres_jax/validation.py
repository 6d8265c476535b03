"""Errors for people: what is wrong with an argument, before anything is compiled.

Values are looked at only where they are concrete. Under `jit` or `vmap` they are
tracers, and the functions that take them stay lossless for anything that is a
distribution.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array

#: How far a distribution's sum may be from 1 (bfloat16 logits pass, counts do not).
SUM_TOLERANCE = 1e-3
#: Numbers that count something are 32 bits wide on a device.
LARGEST = 2**31 - 1


def is_concrete(*values) -> bool:
    """True if all values can be read here.

    Not while `jit`, `vmap` or `grad` trace them, and not where a part of them lies in
    another process.
    """

    def is_here(value) -> bool:
        if isinstance(value, jax.core.Tracer):
            return False
        if not isinstance(value, jax.Array):
            return True
        return value.is_fully_addressable or value.is_fully_replicated

    return all(map(is_here, values))


def as_array(values: Any, name: str = "values") -> Array | np.ndarray:
    """An array of JAX as it is, or of what `jit` traces; else one on the host.

    Raises:
      ValueError: rows of different lengths; the argument is named.
    """
    if isinstance(values, jax.Array):
        return values
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))
    try:
        return jnp.asarray(values) if traced else np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name}: rows of different lengths; pad them on the right to one length"
        ) from error


def as_integer(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """An integer as Python's own: numpy's and JAX's are taken, text is not.

    Args:
      name: the argument to blame.
      value: what was given.
      low: the least that is allowed.
      high: the most that is allowed.

    Raises:
      TypeError: no integer, or one that `jit` traces.
      ValueError: out of range.
    """
    number = _scalar(name, value, "an integer")
    if isinstance(number, bool) or not isinstance(number, int):
        raise wrong_kind(name, "an integer", value)
    if number < low:
        least = "0 or more" if low == 0 else f"at least {low}"
        raise ValueError(f"{name}: must be {least}, got {number}")
    if number > high:
        raise ValueError(f"{name}: must be at most {high}, got {number}")
    return number


def as_number(name: str, value: Any) -> float:
    """A number as Python's own, see `as_integer`; TypeError for anything else."""
    number = _scalar(name, value, "a number")
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise wrong_kind(name, "a number", value)
    return number


def _scalar(name: str, value: Any, wanted: str) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        if not is_concrete(value):
            raise TypeError(
                f"{name}: expected {wanted}, got a value that jit traces, and it fixes "
                "the program"
            )
        return value.item() if np.ndim(value) == 0 else value
    return value


def wrong_kind(name: str, wanted: str, value: Any) -> TypeError:
    """The error for an argument that is something else."""
    shown = f"{value!r:.60}".partition("\n")[0]
    return TypeError(f"{name}: expected {wanted}, got {shown} ({type(value).__name__})")


def as_distribution(
    name: str, values, ndim: int = 1, allow_deficit: bool = False
) -> Array:
    """`values` as a float32-or-wider array of distributions along the last axis.

    Args:
      name: the argument to blame.
      values: [..., V] probabilities.
      ndim: number of dimensions the argument must have.
      allow_deficit: whether the sum may be less than 1 (a sub-distribution).

    Raises:
      ValueError: wrong shape, NaN, negative, all zero, or a sum that is not 1.
    """
    array = jnp.asarray(values)
    if array.ndim != ndim or array.shape[-1] == 0:
        raise ValueError(
            f"{name}: expected a non-empty array of {ndim} dimension(s) with the "
            f"vocabulary last, got shape {array.shape}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating point, got {array.dtype}")
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    if is_concrete(array):
        host = np.asarray(array)
        if np.isnan(host).any():
            raise ValueError(f"{name}: contains NaN")
        if (host < 0).any():
            raise ValueError(f"{name}: contains the negative value {host.min()}")
        total = host.sum(-1, dtype=np.float64)
        if (total == 0).any():
            raise ValueError(f"{name}: is zero everywhere")
        low = 0.0 if allow_deficit else 1 - SUM_TOLERANCE
        if not ((total >= low) & (total <= 1 + SUM_TOLERANCE)).all():
            raise ValueError(
                f"{name}: sums to {np.max(total)}, a distribution sums to 1"
            )
    return array


def same_vocabulary(p: Array, law) -> None:
    """Raises ValueError unless `p [V]` and the law speak of the same V tokens."""
    if p.shape[-1] != law.vocab_size:
        raise ValueError(
            f"p: has {p.shape[-1]} tokens, the draft law has {law.vocab_size}; "
            "target and draft must share one vocabulary"
        )
