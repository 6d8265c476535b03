"""Greedy multi-path block verification (arXiv 2602.16961).

At every node the tokens have an order, by p / q and then by their place in the law. Of
the drafted texts the last in this order is selected, without a look at anything else,
and block verification of that one path follows, against the law of what is selected in
place of q: it leans to where p exceeds q. With b_i drafts below each node of level i,
c_i the probability q that a draft comes before the i-th token of a text and q_i that it
is that token, a whole level comes before or at a text with probability

    T_1(1),  T_i(s) = (c_i + q_i T_{i+1}(s))^{b_{i-1}},  T_{l+1}(s) = s

(before it: T_1(0)), and the text is selected with the difference of the two. Powers are
subtracted as h^b - g^b = (h - g) (h^{b-1} + h^{b-2} g + ... + g^{b-1}), so that nothing
cancels, and relative to those of the text so far, so that nothing vanishes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, TargetRows, TreeDecision, Walk
from globalres_jax.draft_laws import IID
from globalres_jax.numerics import categorical
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transforms import normalized_residual
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers.block import chance_of_last, draw_last
from globalres_jax.tree_verifiers.layers import Support, layout, root_alone, support


class _Selected(NamedTuple):
    """The selected path of a tree of depth D, and its block.

    Attributes:
      nodes: [D + 1] from the root on.
      ends: [D + 1] h.
      weight: [D] w of the nodes above the last.
      rest: [D, k] what may be emitted after them of the tokens of their laws.
      expected: [D] mean of w of the node below, given the nodes above.
    """

    nodes: Array
    ends: Array
    weight: Array
    rest: Array
    expected: Array


class _Fork(NamedTuple):
    """What the text so far says about the drafts below a level that branches.

    All are relative to the chance that a draft there comes before or at the text.

    Attributes:
      before: [] chance that it comes before it, whatever follows.
      at: [] chance that it goes along with it; the two sum to 1.
      less: [] chance that it comes before it, by the text so far.
      drafts: b.
    """

    before: Array
    at: Array
    less: Array
    drafts: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GreedyMultiPathBlock:
    """Selects the path that the target likes most, and verifies it as a block."""

    #: `walk` reads the rows of p that it needs, and no others.
    reads_rows = True

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """TypeError for other laws than `IID`; ValueError for unequal families."""
        others = sorted({type(law).__name__ for law in laws} - {IID.__name__})
        if others:
            raise TypeError(
                f"law: GreedyMultiPathBlock serves IID drafts, got {', '.join(others)}"
            )
        for level, nodes in enumerate(tree.levels[:-1]):
            counts = sorted(set(tree.num_children[nodes].tolist()))
            if len(counts) > 1:
                raise ValueError(
                    "tree: GreedyMultiPathBlock needs equally many drafts below all "
                    f"nodes of a level, level {level} has {counts}"
                )

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """Chance of each node of the selected path, and its residual."""
        if tree.depth == 0:
            return TreeDecision(jnp.ones(1, p.dtype), p)
        held = support(tree, laws, p.dtype)
        path = _select(tree, tokens, p, held)
        ends = chance_of_last(path.ends)
        stop = jnp.zeros(tree.num_nodes, p.dtype).at[path.nodes].set(ends)
        rows = [_row(tree, held, p, path, level) for level in range(tree.depth + 1)]
        return TreeDecision(stop, p.at[path.nodes].set(jnp.stack(rows)))

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Walk:
        """One uniform number a level, and one draw at the last that passes."""
        numbers = categorical.uniforms(key, (tree.depth + 2,), p.dtype)
        if tree.depth == 0:
            return root_alone(numbers[-1], p)
        held = support(tree, laws, p.dtype)
        path = _select(tree, tokens, p, held)
        last = draw_last(numbers[:-1, 0], path.ends)
        levels = jnp.arange(1, tree.depth + 1)
        nodes = jnp.where(levels <= last, path.nodes[1:], 0).astype(jnp.int32)
        token = categorical.draw(numbers[-1], _row(tree, held, p, path, last))
        return Walk(nodes, last, token)

    def expected_by_level(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Array:
        """Mean of w_i given the text above: sum_x min(w_{i-1} p_i, its law): [D]."""
        if tree.depth == 0:
            return jnp.zeros(0, p.dtype)
        return _select(tree, tokens, p, support(tree, laws, p.dtype)).expected


def _select(tree: TokenTree, tokens: Array, p: TargetRows, held: Support) -> _Selected:
    """The last drafted text, level by level; reads one row of p for each."""
    places = jnp.asarray(held.places(tree.num_nodes))
    node, weight = jnp.zeros((), jnp.int32), jnp.ones((), p.dtype)
    alike = jnp.zeros(tree.num_nodes, bool).at[0].set(True)
    forks, ends, weights, rest, expected = (), [], [], [], []
    for group in tree.groups:
        if group.num_children > 1:
            zero, one = jnp.zeros((), p.dtype), jnp.ones((), p.dtype)
            forks = (*forks, _Fork(zero, one, zero, group.num_children))
        names, q = held.tokens[places[node]], held.q[places[node]]
        row = p[node].at[jnp.maximum(names, 0)].get(mode="promise_in_bounds")
        row = jnp.where(names >= 0, row, 0)
        rank, before = _order(row, q)
        skewed, powers = _skewed(forks, before, q)
        left = jnp.maximum(weight * row - skewed, 0)
        beyond = jnp.maximum(1 - blockwise_sum(row), 0)
        total = blockwise_sum(left) + weight * beyond
        ends.append(quotient(total, total + 1 - weight))
        weights.append(weight)
        rest.append(left)
        expected.append(blockwise_sum(jnp.minimum(weight * row, skewed)))

        # Drafts below all nodes that spell the text so far.
        drafts = group.children.reshape(-1)
        found = jnp.repeat(alike[group.nodes], group.num_children)
        slots = jnp.argmax(names[None] == tokens[drafts][:, None], axis=1)
        best = jnp.argmax(jnp.where(found, rank[slots], -1))
        slot, node = slots[best], jnp.asarray(drafts, jnp.int32)[best]
        alike = jnp.zeros(tree.num_nodes, bool)
        alike = alike.at[drafts].set(found & (slots == slot))
        chance = jnp.where(skewed[slot] > 0, skewed[slot], 1)
        weight = jnp.minimum(1, weight * row[slot] / chance)
        forks = _narrowed(forks, before[slot], q[slot], [x[slot] for x in powers])
    # Above it all nodes spell what was selected, whichever of the equal ones it is.
    nodes = jnp.append(0, jnp.asarray(layout(tree).path)[node])
    ends = jnp.stack([*ends, weight]).at[0].set(1)
    return _Selected(nodes, ends, *map(jnp.stack, (weights, rest, expected)))


def _order(p: Array, q: Array) -> tuple[Array, Array]:
    """Place of each token by p / q [k], and the probability of those before it [k]."""
    ratio = jnp.where(q > 0, p / jnp.where(q > 0, q, 1), jnp.inf)
    order = jnp.argsort(ratio, stable=True)
    sums = jnp.cumsum(q[order])
    before = jnp.concatenate([jnp.zeros(1, q.dtype), sums[:-1]])
    rank = (
        jnp.zeros(len(q), jnp.int32).at[order].set(jnp.arange(len(q), dtype=jnp.int32))
    )
    return rank, before[rank]


def _skewed(
    forks: tuple[_Fork, ...], before: Array, q: Array
) -> tuple[Array, list[Array]]:
    """Law of the next selected token [k]; and T before each (1) of every fork's power.

    Args:
      forks: of the text so far, outermost first.
      before: [k] probability of the tokens before each.
      q: [k].
    """
    skewed, most, less, lesser = q, before + q, before, []
    for fork in reversed(forks):
        most, less = fork.before + fork.at * most, fork.before + fork.at * less
        so_far = _difference(jnp.ones_like(fork.less), fork.less, fork.drafts)
        skewed = skewed * _difference(most, less, fork.drafts) / so_far
        lesser.append(less)
        most, less = most**fork.drafts, less**fork.drafts
    return skewed, lesser[::-1]


def _narrowed(
    forks: tuple[_Fork, ...], before: Array, at: Array, less: list[Array]
) -> tuple[_Fork, ...]:
    """The forks of a text with one token more.

    Args:
      forks: of the text so far.
      before: [] probability of the tokens before it.
      at: [] its own.
      less: of each fork the chance [] of coming before the text, for the old scale.
    """
    narrowed = []
    for fork, less_now in zip(reversed(forks), reversed(less), strict=True):
        before, at = fork.before + fork.at * before, fork.at * at
        scale = before + at
        inverse = quotient(jnp.ones_like(scale), scale)
        narrowed.append(
            _Fork(before * inverse, at * inverse, less_now * inverse, fork.drafts)
        )
        # What lies further out sees this fork's drafts together.
        before, at = jnp.zeros_like(before), scale**fork.drafts
    return tuple(reversed(narrowed))


def _difference(most: Array, less: Array, power: int) -> Array:
    """(most^b - less^b) / (most - less), from positive terms."""
    total, last = jnp.ones_like(most), jnp.ones_like(less)
    for _ in range(power - 1):
        last = last * less
        total = total * most + last
    return total


def _row(
    tree: TokenTree, held: Support, p: TargetRows, path: _Selected, level: Array
) -> Array:
    """Law of the token after the path's node at `level []`: [V]."""
    node, above = path.nodes[level], jnp.minimum(level, tree.depth - 1)
    row = p[node]
    names = held.tokens[jnp.asarray(held.places(tree.num_nodes))[node]]
    # Beyond the vocabulary nothing is written: nor after the end of the path.
    slots = jnp.where((names >= 0) & (level < tree.depth), names, row.shape[0])
    mass = path.weight[above] * row
    mass = mass.at[slots].set(path.rest[above], mode="drop")
    return normalized_residual(mass, row)
