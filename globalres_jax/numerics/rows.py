"""Many problems in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_rows(function: Callable, *arrays: Any) -> Any:
    """`function` on every row of the arguments (pytrees with a leading axis).

    On an accelerator all rows run together. On a CPU they run one after another, in
    one compiled loop: rows in lockstep would wait for the slowest, and their work
    would no longer fit its caches.
    """
    return _map_rows(function, function, arrays)


def in_rows(function: Callable) -> Callable:
    """`function`, whose `vmap` is `map_rows`. Not differentiable."""
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def _(size, batched, *args):
        rows = jax.tree.map(
            lambda x, has_rows: (
                x if has_rows else jnp.broadcast_to(x, (size, *x.shape))
            ),
            args,
            tuple(batched),
        )
        result = _map_rows(single, function, rows)
        return result, jax.tree.map(lambda _: True, result)

    return functools.wraps(function)(single)


def _map_rows(one: Callable, together: Callable, arrays: tuple) -> Any:
    return jax.lax.platform_dependent(
        arrays,
        cpu=lambda rows: jax.lax.map(lambda row: one(*row), rows),
        default=lambda rows: jax.vmap(together)(*rows),
    )
