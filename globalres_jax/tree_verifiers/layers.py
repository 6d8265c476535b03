"""A drafted tree layer by layer, as arrays that one loop over the levels can take.

Nodes that spell the same text are one: their representative stands for them, with the
drafts of all. All levels are filled up to the same width, so that a loop over them is
compiled once. Everything here is for one row.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, TargetRows, Walk
from globalres_jax.numerics import categorical
from globalres_jax.numerics.rows import map_rows
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transforms import normalized_residual
from globalres_jax.tree import TokenTree


class Layout(NamedTuple):
    """Where each node of a tree of depth D has its place; static.

    Attributes:
      nodes: [D + 1, W] the nodes of each level, those with children first; -1 in
        places beyond.
      inner: [D, M] those that have children, likewise.
      place: [N] of a node among those of its level.
      path: [N, D] node at each depth from 1 on along the way to a node, 0 beyond.
    """

    nodes: np.ndarray
    inner: np.ndarray
    place: np.ndarray
    path: np.ndarray


class Layers(NamedTuple):
    """A drafted tree, stacked by levels: of each the nodes, and the drafts below.

    The first M places of a level hold the nodes that have children, if there are so
    many; a place without drafts has count 0 and all of its probability beyond them.

    Attributes:
      counts: [D, M] drafts of each; 0 for nodes that another one stands for.
      p: [D, M, k] target probability of the tokens of each node's law.
      q: [D, M, k] law of its first draft.
      beyond: [D, M] target probability of all other tokens.
      parent: [D, W] of each draft the place, among the M, of what it is a draft of.
      slot: [D, W] its place among the k tokens of the law.
      drawn: [D, W] bool, whether there is such a draft.
      alike: [D, W, W] bool, whether the row's draft stands for the column's.
    """

    counts: Array
    p: Array
    q: Array
    beyond: Array
    parent: Array
    slot: Array
    drawn: Array
    alike: Array


class Support(NamedTuple):
    """The laws of all inner nodes, in the order of `tree.groups`.

    Attributes:
      order: [I] the nodes; static.
      tokens: [I, k] the tokens of each law; -1 in places beyond.
      q: [I, k] law of the first draft.
    """

    order: np.ndarray
    tokens: Array
    q: Array

    def places(self, num_nodes: int) -> np.ndarray:
        """[N] of each node among the inner ones, 0 for a leaf."""
        places = np.zeros(num_nodes, np.int32)
        places[self.order] = np.arange(len(self.order))
        return places


@functools.lru_cache(maxsize=64)
def layout(tree: TokenTree) -> Layout:
    """The layout of a tree."""
    has_none = tree.num_children == 0
    levels = [
        level[np.argsort(has_none[level], kind="stable")] for level in tree.levels
    ]
    inner = [level[~has_none[level]] for level in levels[:-1]]
    place = np.zeros(tree.num_nodes, np.int32)
    for level in levels:
        place[level] = np.arange(len(level))
    path = np.zeros((tree.num_nodes, tree.depth), np.int32)
    for node in range(1, tree.num_nodes):
        path[node] = path[tree.parents[node]]
        path[node, tree.depths[node] - 1] = node
    return Layout(_filled(levels), _filled(inner), place, path)


def representatives(tree: TokenTree, same: Array) -> Array:
    """[N] the node that stands for each: the first equal one, with children if any.

    Args:
      tree: shape of the tree.
      same: [N, N] bool, `tree.same_prefix` of its tokens.
    """
    rank = np.where(tree.num_children > 0, 2, 1)
    return jnp.argmax(jnp.where(same, rank[None], 0), axis=1).astype(jnp.int32)


def support(tree: TokenTree, laws: tuple, dtype) -> Support:
    """The laws of all inner nodes as one array, filled up to the largest of them."""
    first = [jax.vmap(lambda one: one.first)(law).astype(dtype) for law in laws]
    most = max(probs.shape[1] for probs in first)
    tokens, q = [], []
    for law, probs in zip(laws, first, strict=True):
        held = law.tokens
        if held is None:
            held = jnp.broadcast_to(
                jnp.arange(law.vocab_size, dtype=jnp.int32)[None], probs.shape
            )
        beyond = ((0, 0), (0, most - held.shape[1]))
        tokens.append(jnp.pad(held, beyond, constant_values=-1))
        q.append(jnp.pad(probs, beyond))
    order = np.concatenate([group.nodes for group in tree.groups])
    return Support(order, jnp.concatenate(tokens), jnp.concatenate(q))


def layers(tree: TokenTree, tokens: Array, p: TargetRows, laws: Support) -> Layers:
    """The layers of a drafted tree.

    Reads the rows of p of all representatives that have children, each once.

    Args:
      tree: shape of the tree, of depth 1 or more.
      tokens: [N] token at each node.
      p: [N, V] target distribution after each node.
      laws: of the inner nodes.
    """
    plan, same = layout(tree), tree.same_prefix(tokens)
    stands_for = representatives(tree, same)
    is_live = stands_for == jnp.arange(tree.num_nodes)
    counts = jnp.sum(jnp.where(same, jnp.asarray(tree.num_children)[None], 0), axis=1)
    counts = jnp.where(is_live, counts, 0)

    def own_row(node: Array, live: Array, held: Array) -> Array:
        def read() -> Array:
            row = p[node].at[jnp.maximum(held, 0)].get(mode="promise_in_bounds")
            return jnp.where(held >= 0, row, 0)

        return jax.lax.cond(live, read, lambda: jnp.zeros(held.shape, p.dtype))

    order = jnp.asarray(laws.order)
    own = map_rows(own_row, order, is_live[order], laws.tokens)
    beyond = jnp.maximum(1 - blockwise_sum(own), 0)

    places = laws.places(tree.num_nodes)
    above = stands_for[np.maximum(tree.parents, 0)]
    found = laws.tokens[jnp.asarray(places)[above]] == tokens[:, None]
    slot = jnp.argmax(found, axis=1).astype(jnp.int32)
    drawn = (tokens >= 0) & jnp.any(found, axis=1)

    has_drafts, inner = plan.inner >= 0, np.maximum(plan.inner, 0)
    exists, below = plan.nodes[1:] >= 0, np.maximum(plan.nodes[1:], 0)
    alike = same[below[:, :, None], below[:, None, :]] & exists[:, None, :]
    return Layers(
        counts=jnp.where(has_drafts, counts[inner], 0),
        p=jnp.where(has_drafts[..., None], own[places[inner]], 0),
        q=laws.q[places[inner]],
        beyond=jnp.where(has_drafts, beyond[places[inner]], 1),
        parent=jnp.asarray(plan.place)[above][below],
        slot=slot[below],
        drawn=drawn[below] & exists,
        alike=alike & (is_live[below] & exists)[:, :, None],
    )


def root_alone(numbers: Array, p: TargetRows) -> Walk:
    """The walk of a tree without drafts, by uniform `numbers [UNIFORMS]`."""
    token = categorical.draw(numbers, p[jnp.zeros((), jnp.int32)])
    return Walk(jnp.zeros(0, jnp.int32), jnp.zeros((), jnp.int32), token)


class Residuals(NamedTuple):
    """What may be emitted after each node, if the step ends there.

    Attributes:
      scale: [D + 1, W] of the target's row, for tokens that could not be drafted.
      rest: [D, M, k] mass of the tokens of the node's law.
    """

    scale: Array
    rest: Array

    def row(self, tree: TokenTree, laws: Support, p: TargetRows, node: Array) -> Array:
        """Law of the token after `node []`: [V]."""
        level = jnp.asarray(tree.depths)[node]
        place = jnp.asarray(layout(tree).place)[node]
        row = p[node]
        held = laws.tokens[jnp.asarray(laws.places(tree.num_nodes))[node]]
        has_drafts = jnp.asarray(tree.num_children > 0)[node]
        # Beyond the vocabulary nothing is written.
        slots = jnp.where(has_drafts & (held >= 0), held, row.shape[0])
        mass = self.scale[level, place] * row
        mass = mass.at[slots].set(self.rest[level, place], mode="drop")
        return normalized_residual(mass, row)


def _filled(levels) -> np.ndarray:
    """[L, W] node numbers of each level, filled up with -1."""
    most = max((len(level) for level in levels), default=0)
    filled = np.full((len(levels), most), -1, np.int32)
    for row, level in zip(filled, levels, strict=True):
        row[: len(level)] = level
    return filled
