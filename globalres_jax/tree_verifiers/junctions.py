"""Where a walk can go on: the drafts that verify the token after each node of a tree.

Independent drafts of nodes that spell the same text are together one larger sample:
equal nodes merge, and how many drafts a node has depends on the tokens. Drafts of
other laws (without replacement, say) differ among themselves, so equal nodes come from
merged parents only; the walk then follows the first of them, and the drafts of the
others are not looked at. Everything here is for one row.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array, DraftLaw
from globalres_jax.tree import TokenTree


class Drafts(NamedTuple):
    """The drafts below one node.

    Attributes:
      tokens: [n] with `NO_TOKEN` in slots that are not in use.
      nodes: [n] the tree node of each; any where the slot is not in use.
    """

    tokens: Array
    nodes: Array


@dataclasses.dataclass(frozen=True)
class Junctions:
    """Inner nodes of a drafted tree whose laws are alike: one program serves them all.

    Attributes:
      nodes: [M] these nodes.
      slots: [M, n] nodes whose tokens may verify what follows each; -1 for none.
      places: [N] place of a node of the tree in `nodes`, 0 for all others.
      laws: for each of `nodes` the law of all drafts below it, stacked [M].
    """

    nodes: np.ndarray
    slots: np.ndarray
    places: np.ndarray
    laws: DraftLaw

    def law(self, node: Array) -> DraftLaw:
        """The law of all drafts below `node []`."""
        place = jnp.asarray(self.places)[node]
        return jax.tree.map(lambda x: x[place], self.laws)

    def drafts(
        self, tree: TokenTree, tokens: Array, same: Array, node: Array
    ) -> Drafts:
        """The drafts below `node []`: tokens [N], and `tree.same_prefix` of them."""
        slots = jnp.asarray(self.slots)[jnp.asarray(self.places)[node]]
        nodes = jnp.maximum(slots, 0)
        in_use = slots >= 0
        if self.laws.joins:
            in_use = in_use & same[node][jnp.asarray(tree.parents)[nodes]]
        return Drafts(jnp.where(in_use, tokens[nodes], NO_TOKEN), nodes)


def junctions(tree: TokenTree, same: Array, laws: tuple) -> tuple[Junctions, ...]:
    """All inner nodes of a drafted tree.

    Args:
      tree: shape of the tree.
      same: [N, N] bool, `tree.same_prefix` of its tokens.
      laws: for each of `tree.groups`, the stacked laws of the children of one node.
    """
    kinds: dict[Any, list] = {}
    for group, law in zip(tree.groups, laws, strict=True):
        slots = group.children
        if law.joins:
            law = _joined(tree, same, group, law)
            below = tree.levels[group.level + 1]
            slots = np.broadcast_to(below, (len(group.nodes), len(below)))
        leaves, structure = jax.tree.flatten(law)
        shapes = tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)
        kinds.setdefault((structure, shapes), []).append((group.nodes, slots, law))
    return tuple(_together(tree, *zip(*parts, strict=True)) for parts in kinds.values())


def kind_of(tree: TokenTree, kinds: tuple[Junctions, ...]) -> np.ndarray:
    """[N] 0 for a leaf, i + 1 for a node of `kinds[i]`."""
    kind = np.zeros(tree.num_nodes, np.int32)
    for index, alike in enumerate(kinds):
        kind[alike.nodes] = index + 1
    return kind


def _joined(tree: TokenTree, same: Array, group, law: DraftLaw) -> DraftLaw:
    """The laws of the drafts below all nodes that are equal to each of a group."""
    alike = same[group.nodes]
    counts = jnp.sum(jnp.where(alike, jnp.asarray(tree.num_children)[None], 0), 1)
    most = most_joined(tree)
    return jax.vmap(lambda one, count: one.joined(count, most))(law, counts)


def _together(tree: TokenTree, nodes: tuple, slots: tuple, laws: tuple) -> Junctions:
    """Groups whose laws are alike as one; slots are filled up with -1."""
    most = max(part.shape[1] for part in slots)
    slots = [
        np.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=-1)
        for part in slots
    ]
    nodes = np.concatenate(nodes)
    places = np.zeros(tree.num_nodes, np.int32)
    places[nodes] = np.arange(len(nodes))
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *laws)
    return Junctions(nodes, np.concatenate(slots), places, together)


def most_joined(tree: TokenTree) -> int:
    """Most drafts that can verify one token: all nodes of the widest level."""
    return max(map(len, tree.levels))


def law_to_check(tree: TokenTree, law: DraftLaw) -> DraftLaw:
    """A law like those of `junctions`: of the same type, with as many drafts."""
    most = most_joined(tree)
    return law.joined(np.asarray(most), most) if law.joins else law


def representative(tree: TokenTree, drafts: Drafts, token: Array) -> Array:
    """[n] bool: the one draft through which the walk goes on with `token []`.

    The first that has children, if any has: all spell the same text.
    """
    rank = jnp.asarray(np.where(tree.num_children > 0, 2, 1))[drafts.nodes]
    rank = jnp.where(drafts.tokens == token, rank, 0)
    is_first = jnp.arange(len(rank)) == jnp.argmax(rank)
    return is_first & (rank > 0)
