"""A drafted tree layer by layer, as arrays that one loop over the levels can take.

Nodes that spell the same text are one: their representative stands for them, with the
drafts of all. All levels are filled up to the same width, so that a loop over them is
compiled once. Everything here is for one row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, TargetRows
from globalres_jax.numerics.rows import map_rows
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.tree import TokenTree


class Layout(NamedTuple):
    """Where each node of a tree of depth D has its place; static.

    Attributes:
      nodes: [D + 1, W] the nodes of each level, -1 in places beyond.
      inner: [D, M] those that have children, likewise.
      place: [N] of a node among those of its level.
      inner_place: [N] of a node among those of its level that have children.
      path: [N, D] node at each depth from 1 on along the way to a node, 0 beyond.
    """

    nodes: np.ndarray
    inner: np.ndarray
    place: np.ndarray
    inner_place: np.ndarray
    path: np.ndarray


class Layers(NamedTuple):
    """A drafted tree, stacked by levels: of each the nodes, and the drafts below.

    Attributes:
      inner: [D, M] places, among the W nodes of a level, of those that have children;
        W where there is none.
      counts: [D, M] drafts of each; 0 for nodes that another one stands for.
      p: [D, M, k] target probability of the tokens of each node's law.
      q: [D, M, k] law of one draft.
      beyond: [D, M] target probability of all other tokens.
      parent: [D, W] of each draft the place, among the M, of what it is a draft of.
      slot: [D, W] its place among the k tokens of the law.
      drawn: [D, W] bool, whether there is such a draft.
      alike: [D, W, W] bool, drafts of which the row stands for the column.
    """

    inner: Array
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
      q: [I, k] law of one draft.
    """

    order: np.ndarray
    tokens: Array
    q: Array

    def places(self, num_nodes: int) -> np.ndarray:
        """[N] of each node among the inner ones, 0 for a leaf."""
        places = np.zeros(num_nodes, np.int32)
        places[self.order] = np.arange(len(self.order))
        return places


def layout(tree: TokenTree) -> Layout:
    """The layout of a tree."""
    inner = [level[tree.num_children[level] > 0] for level in tree.levels[:-1]]
    place, inner_place = (np.zeros(tree.num_nodes, np.int32) for _ in range(2))
    for level in tree.levels:
        place[level] = np.arange(len(level))
    for level in inner:
        inner_place[level] = np.arange(len(level))
    path = np.zeros((tree.num_nodes, tree.depth), np.int32)
    for node in range(1, tree.num_nodes):
        path[node] = path[tree.parents[node]]
        path[node, tree.depths[node] - 1] = node
    return Layout(_filled(tree.levels), _filled(inner), place, inner_place, path)


def representatives(tree: TokenTree, same: Array) -> Array:
    """[N] the node that stands for each: the first equal one, with children if any.

    Args:
      tree: shape of the tree.
      same: [N, N] bool, `tree.same_prefix` of its tokens.
    """
    rank = np.where(tree.num_children > 0, 2, 1)
    return jnp.argmax(jnp.where(same, rank[None], 0), axis=1).astype(jnp.int32)


def support(tree: TokenTree, laws: tuple, dtype) -> Support:
    """The laws of all nodes as one array, filled up to the largest of them."""
    most = max(law.token_probs.shape[-1] for law in laws)
    tokens, q = [], []
    for law in laws:
        held = law.tokens
        if held is None:
            held = jnp.broadcast_to(
                jnp.arange(law.vocab_size, dtype=jnp.int32), law.token_probs.shape
            )
        beyond = ((0, 0), (0, most - held.shape[1]))
        tokens.append(jnp.pad(held, beyond, constant_values=-1))
        q.append(jnp.pad(law.token_probs.astype(dtype), beyond))
    order = np.concatenate([group.nodes for group in tree.groups])
    return Support(order, jnp.concatenate(tokens), jnp.concatenate(q))


def layers(
    tree: TokenTree,
    tokens: Array,
    p: TargetRows,
    same: Array,
    laws: Support,
) -> Layers:
    """The layers of a drafted tree, of i.i.d. drafts below each node.

    Reads the rows of p of all representatives that have children, each once.

    Args:
      tree: shape of the tree, of depth 1 or more.
      tokens: [N] token at each node.
      p: [N, V] target distribution after each node.
      same: [N, N] bool, `tree.same_prefix(tokens)`.
      laws: of the inner nodes.
    """
    plan = layout(tree)
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

    inner, below = np.maximum(plan.inner, 0), np.maximum(plan.nodes[1:], 0)
    exists = plan.nodes[1:] >= 0
    alike = same[below[:, :, None], below[:, None, :]] & exists[:, None, :]
    return Layers(
        inner=jnp.where(plan.inner >= 0, plan.place[inner], plan.nodes.shape[1]),
        counts=jnp.where(plan.inner >= 0, counts[inner], 0),
        p=own[places[inner]],
        q=laws.q[places[inner]],
        beyond=beyond[places[inner]],
        parent=jnp.asarray(plan.inner_place)[above][below],
        slot=slot[below],
        drawn=drawn[below] & exists,
        alike=alike & (is_live[below] & exists)[:, :, None],
    )


def _filled(levels) -> np.ndarray:
    """[L, W] node numbers of each level, filled up with -1."""
    most = max((len(level) for level in levels), default=0)
    filled = np.full((len(levels), most), -1, np.int32)
    for row, level in zip(filled, levels, strict=True):
        row[: len(level)] = level
    return filled
