"""Many problems in one call."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

_KNOWN: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "platform", default=None
)


@contextlib.contextmanager
def on_platform(name: str | None) -> Iterator[None]:
    """Says that what is traced inside is for "cpu", "gpu" or "tpu"; None: not known.

    Only the way of that platform is then traced, and loops in loops take long to trace.
    What `jax.jit` keeps of inner functions does not know of this: such a function has
    `known_platform()` among its static arguments.
    """
    token = _KNOWN.set(name)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def known_platform() -> str | None:
    """What `on_platform` said."""
    return _KNOWN.get()


def by_platform(*args: Any, default: Callable, **ways: Callable) -> Any:
    """`jax.lax.platform_dependent`, decided at once where the platform is known."""
    known = known_platform()
    if known is None:
        return jax.lax.platform_dependent(*args, default=default, **ways)
    return ways.get(known, default)(*args)


def with_types_of(carry: Any, values: Any) -> Any:
    """`values` in the types of `carry`, leaf by leaf, as a loop has to hand them on.

    Where 64-bit numbers are enabled, sums and indices come out wider than they went in.
    """

    def cast(new: Any, old: Any) -> Any:
        wanted = jnp.result_type(old)
        if jax.dtypes.issubdtype(wanted, jax.dtypes.extended):
            return new  # keys
        return jnp.asarray(new, wanted)

    return jax.tree.map(cast, values, carry)


def map_rows(function: Callable, *arrays: Any) -> Any:
    """`function` on every row of the arguments (pytrees with a leading axis).

    On an accelerator all rows run together. On a CPU they run one after another, in
    one compiled loop: rows in lockstep would wait for the slowest, and their work
    would no longer fit its caches.
    """
    return _map_rows(function, function, arrays)


def in_rows(function: Callable) -> Callable:
    """`function`, whose `vmap` is `map_rows`. Not differentiable."""

    @functools.wraps(function)
    def call(*args):
        # What the function closes over becomes arguments: behind a `cond` that is
        # batched JAX batches them, which `custom_vmap` allows for arguments alone.
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        structure = jax.tree.structure(shape)

        def flat(consts: list, *leaves) -> list:
            with_consts = jax_core.ClosedJaxpr(closed.jaxpr, consts)
            return jax_core.jaxpr_as_fun(with_consts)(*leaves)

        found = _whose_vmap_is_in_rows(flat)(closed.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(structure, found)

    return call


def _whose_vmap_is_in_rows(function: Callable) -> Callable:
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

    return single


def _map_rows(one: Callable, together: Callable, arrays: tuple) -> Any:
    return by_platform(
        arrays,
        cpu=lambda rows: jax.lax.map(lambda row: one(*row), rows),
        default=lambda rows: jax.vmap(together)(*rows),
    )
