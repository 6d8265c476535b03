"""Rows of a batch as data: one is read, put in place of another, and all advance."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.decoding.emission import TextBuffer
from globalres_jax.decoding.generation import Generation, as_generation
from globalres_jax.decoding.program import Program
from globalres_jax.decoding.progress import STATIC, advance, begin
from globalres_jax.decoding.state import Request, StepState
from globalres_jax.numerics.rows import on_platform
from globalres_jax.sharding import place_rows


class Rows(NamedTuple):
    """All that differs from row to row, leaves [B, ...]; one whose budget is 0 is free.

    Attributes:
      state: of the decoding steps.
      text: so far.
      ends: [B, E] tokens that end each row, -1 for none.
      options: leaves of the sampling options of each row; the options themselves
        would wait for the device whenever a program returns them, to check them.
    """

    state: StepState
    text: TextBuffer
    ends: Array
    options: tuple[Array, ...]

    @property
    def running(self) -> np.ndarray:
        """[B] bool, on the host; waits for the device."""
        return np.asarray(self.state.budget) > 0

    def result(self, row: int) -> Generation:
        """What a row has written, on the host."""
        return as_generation(self.state, self.text).row(row)


def kind_of(program: Program) -> tuple:
    """What programs must have in common to share a batch: shapes, and what is static.

    Hashable. Widths of prompts are not of it: once read, a prompt has the shape of its
    cache.
    """
    given = program.arrays
    leaves, structure = jax.tree.flatten((given.budget, given.ends, given.options))
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    return structure, shapes, tuple(sorted(program.static.items()))


def insert(rows: Rows | None, row: int, program: Program, batch: int) -> Rows:
    """The rows with the request of `program`, whose B is 1, in place of one of them.

    What was there is given away: `rows` cannot be used afterwards.

    Args:
      rows: of requests of the same kind; None for a batch that begins.
      row: which to replace, 0..B - 1.
      program: the request.
      batch: B.
    """
    one = _read(*program.arrays, **program.static)
    mesh = program.static["mesh"]
    if rows is None:
        rows = place_rows(mesh, _empty(one, batch=batch))
    places = _places(mesh, rows)
    return _placed(_replace(rows, np.int32(row), one), places)


def advance_rows(rows: Rows, program: Program, most: int) -> Rows:
    """Up to `most` steps of all rows, until one of those that are running has ended.

    What was there is given away. For `program` see `insert`: any request of the kind.
    """
    target, drafter = program.arrays.target, program.arrays.drafter
    places = _places(program.static["mesh"], rows)
    structure = jax.tree.structure(program.arrays.options)
    rows = _advance(
        rows, target, drafter, np.int32(most), structure=structure, **program.static
    )
    return _placed(rows, places)


def keep_running(rows: Rows, running: np.ndarray) -> Rows:
    """The rows, of which only those that are `running [B]` go on."""
    return rows._replace(state=rows.state.keep_running(running))


def _places(mesh: Any, rows: Rows) -> Any:
    return None if mesh is None else jax.tree.map(lambda x: x.sharding, rows)


def _placed(rows: Rows, places: Any) -> Rows:
    """Where they were: elsewhere they would be the arguments of another program."""
    return rows if places is None else jax.device_put(rows, places)


@functools.partial(jax.jit, static_argnames=STATIC)
def _read(
    target,
    drafter,
    keys,
    prompts,
    lengths,
    budget,
    ends,
    options,
    *,
    config,
    room,
    capacity,
    mesh,
    platform,
) -> Rows:
    del mesh
    with on_platform(platform):
        request = Request(target, drafter, options, ends, config)
        state, text = begin(request, keys, prompts, lengths, budget, room, capacity)
        return Rows(state, text, ends, tuple(jax.tree.leaves(options)))


@functools.partial(jax.jit, static_argnames="batch")
def _empty(one: Rows, batch: int) -> Rows:
    """As many rows like this one that have nothing to do."""
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), one)
    free = jnp.zeros_like(rows.state.budget)
    return rows._replace(state=rows.state._replace(budget=free))


@functools.partial(jax.jit, donate_argnums=0)
def _replace(rows: Rows, row: Array, one: Rows) -> Rows:
    def put(x: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, row, axis=0)

    return jax.tree.map(put, rows, one)


@functools.partial(jax.jit, static_argnames=("structure", *STATIC), donate_argnums=0)
def _advance(
    rows, target, drafter, most, *, structure, config, room, capacity, mesh, platform
) -> Rows:
    del room, capacity, mesh
    with on_platform(platform):
        options = jax.tree.unflatten(structure, rows.options)
        request = Request(target, drafter, options, rows.ends, config)
        state, text = advance(rows.state, rows.text, request, most, until_one_ends=True)
        return rows._replace(state=state, text=text)
