"""Traversal verification: from the leaves up (Weng et al., arXiv 2505.12398).

A node v holds a weight w_v, and of what it may still emit the mass m_v = w_v p_v; the
root begins with 1 and p. Its different drafts c are looked at in the order in which
they were drawn, with q_v the law of the next of them:

    w_c = min(1, m_v(c) / q_v(c)),     m_c = w_c p_c,     then c's own drafts, and then
    c is accepted with probability w_c, which ends the step; or else

    m_v = (m_v - q_v)_+ / (s + 1 - w_v),     w_v = s / (s + 1 - w_v),
    q_v(c) = 0, normalised anew,             s = sum of (m_v - q_v)_+

The accepted node's path is emitted, and a token from its m. The root is accepted if no
other node is. Which weights come out does not depend on what was accepted, so that they
are computed layer by layer and the first node that accepts is drawn at once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, TargetRows, TreeDecision, Walk
from globalres_jax.draft_laws import IID, WithoutReplacement
from globalres_jax.numerics import categorical
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers.block import Block
from globalres_jax.tree_verifiers.expected import reached_by_level
from globalres_jax.tree_verifiers.layers import (
    Layers,
    Residuals,
    Support,
    layers,
    layout,
    representatives,
    root_alone,
    support,
)


class _Level(NamedTuple):
    """The M nodes of a level that have drafts, and W weights of the level below.

    Attributes:
      weight: [M] w.
      mass: [M, k] m at the tokens of each law.
      scale: [M] m over p, at all other tokens.
      q: [M, k] law of the next different draft.
      below: [W] weights of the drafts looked at so far.
    """

    weight: Array
    mass: Array
    scale: Array
    q: Array
    below: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Traversal:
    """Verifies a tree from its leaves: i.i.d. drafts, or without replacement.

    Equal drafts of one node are one; the different ones among i.i.d. drafts are a
    sample without replacement.
    """

    #: `walk` reads the rows of p that it needs, and no others.
    reads_rows = True

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """TypeError for other laws than `IID` and `WithoutReplacement`, or for both."""
        del tree
        kinds = {type(law) for law in laws}
        for served in ({IID}, {WithoutReplacement}):
            if kinds <= served:
                return
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(
            f"law: Traversal serves IID or WithoutReplacement drafts, got {names}"
        )

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """Chance that each node is the first to accept, and what is left to it."""
        if tree.depth == 0:
            return TreeDecision(jnp.ones(1, p.dtype), p)
        held = support(tree, laws, p.dtype)
        weights, residuals = self._weights(tree, tokens, p, laws, held)
        rows = functools.partial(residuals.row, tree, held, p)
        return TreeDecision(
            _first(tree, tokens, weights), jax.vmap(rows)(jnp.arange(tree.num_nodes))
        )

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Walk:
        """One draw of the node that accepts, one of the token after it."""
        numbers = categorical.uniforms(key, (2,), p.dtype)
        if tree.depth == 0:
            return root_alone(numbers[1], p)
        held = support(tree, laws, p.dtype)
        weights, residuals = self._weights(tree, tokens, p, laws, held)
        node = categorical.draw(numbers[0], _first(tree, tokens, weights))
        token = categorical.draw(numbers[1], residuals.row(tree, held, p, node))
        level = jnp.asarray(tree.depths, jnp.int32)[node]
        return Walk(jnp.asarray(layout(tree).path)[node], level, token)

    def expected_by_level(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Array:
        """Of one path that of `Block`, else the chance to accept so many: [D]."""
        if max(map(len, tree.levels)) == 1:
            return Block().expected_by_level(tree, tokens, p, laws)
        rows = p[jnp.arange(tree.num_nodes)]
        return reached_by_level(tree, self.law(tree, tokens, rows, laws).stop)

    def _weights(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple, held: Support
    ) -> tuple[Array, Residuals]:
        """Weight of each node [N] once its drafts are gone, and what it may emit."""
        plan, drafted = layout(tree), layers(tree, tokens, p, held)
        # Exchangeable drafts may be looked at in any fixed order; those of nodes with
        # children first, since these stand for the others.
        order = np.where(plan.nodes[1:] < 0, tree.num_nodes, plan.nodes[1:])
        order = np.argsort(order, axis=1)
        if all(law.joins for law in laws):
            order = np.broadcast_to(np.arange(order.shape[1]), order.shape)
        inner = drafted.counts.shape[1]

        def descend(weight: Array, level: tuple[Layers, Array]):
            layer, order = level
            own = weight[:inner]
            start = _Level(
                own, own[:, None] * layer.p, own, layer.q, jnp.zeros_like(weight)
            )
            look = functools.partial(_look_at, layer)
            end = jax.lax.fori_loop(
                0, len(order), lambda i, at: look(order[i], at), start
            )
            accepts = weight.at[:inner].set(end.weight)
            scale = weight.at[:inner].set(end.scale)
            return end.below, (accepts, scale, end.mass)

        start = jnp.zeros(plan.nodes.shape[1], p.dtype).at[0].set(1)
        last, (accepts, scale, mass) = jax.lax.scan(
            descend, start, (drafted, jnp.asarray(order, jnp.int32))
        )
        accepts = jnp.concatenate([accepts, last[None]])
        scale = jnp.concatenate([scale, last[None]])
        return accepts[tree.depths, plan.place], Residuals(scale, mass)


def _look_at(layer: Layers, draft: Array, at: _Level) -> _Level:
    """The next draft, by its place [] among those of the level."""
    parent, slot = layer.parent[draft], layer.slot[draft]
    q, mass, weight = at.q[parent], at.mass[parent], at.weight[parent]
    stands = layer.drawn[draft] & layer.alike[draft, draft]
    below = jnp.where(stands, jnp.minimum(1, quotient(mass[slot], q[slot])), 0)

    # What is left to the node once the draft is rejected.
    left = jnp.maximum(mass - q, 0)
    scale = at.scale[parent]
    total = blockwise_sum(left) + scale * layer.beyond[parent]
    norm = quotient(jnp.ones_like(total), total + 1 - weight)
    others = jnp.where(jnp.arange(len(q)) == slot, 0, q)
    others = quotient(others, blockwise_sum(others))

    def replaced(old: Array, new: Array) -> Array:
        return old.at[parent].set(jnp.where(stands, new, old[parent]))

    return _Level(
        weight=replaced(at.weight, total * norm),
        mass=replaced(at.mass, left * norm),
        scale=replaced(at.scale, scale * norm),
        q=replaced(at.q, others),
        below=at.below.at[draft].set(below),
    )


def _first(tree: TokenTree, tokens: Array, weights: Array) -> Array:
    """Chance that each node is the first that accepts, leaves before parents: [N].

    Args:
      tree: shape of the tree.
      tokens: [N] token at each node.
      weights: [N] chance that a node accepts if none before it has.
    """
    plan = layout(tree)
    stands_for = representatives(tree, tree.same_prefix(tokens))
    places = jnp.asarray(plan.place)[stands_for][plan.path]
    # Beyond its own depth a node comes after all that lie below it.
    beyond = np.arange(tree.depth)[None] >= tree.depths[:, None]
    places = jnp.where(beyond, tree.num_nodes, places)
    before = jnp.zeros((tree.num_nodes, tree.num_nodes), bool)
    equal = ~before
    for level in range(tree.depth):
        row, column = places[:, None, level], places[None, :, level]
        before = before | (equal & (column < row))
        equal = equal & (column == row)
    missed = jnp.prod(jnp.where(before, 1 - weights[None], 1), axis=1)
    return missed * weights.at[0].set(1)
