"""Where a walk can go on: the drafts that verify the token after each node of a tree.

Independent drafts of nodes that spell the same text are together one larger sample:
equal nodes merge, and how many drafts a node has depends on the tokens. Drafts of
other laws (without replacement, say) differ among themselves, so equal nodes come from
merged parents only; the walk then follows the first of them, and the drafts of the
others are not looked at. Everything here is for one row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array
from globalres_jax.tree import TokenTree


class Drafts(NamedTuple):
    """The drafts below one node.

    Attributes:
      tokens: [n] with `NO_TOKEN` in slots that are not in use.
      nodes: [n] the tree node of each.
    """

    tokens: Array
    nodes: Array


def verified_laws(tree: TokenTree, same: Array, laws: tuple) -> tuple:
    """For each of `tree.groups`, the laws [W] of all drafts below its nodes.

    Args:
      tree: shape of the tree.
      same: [N, N] bool, `tree.same_prefix` of its tokens.
      laws: for each group, the stacked laws of the children of one node.
    """

    def of_group(group, law):
        if not law.joins:
            return law
        alike = same[group.nodes]
        counts = jnp.sum(jnp.where(alike, jnp.asarray(tree.num_children)[None], 0), 1)
        most = most_joined(tree)
        return jax.vmap(lambda one, count: one.joined(count, most))(law, counts)

    return tuple(map(of_group, tree.groups, laws))


def most_joined(tree: TokenTree) -> int:
    """Most drafts that can verify one token: all nodes of the widest level."""
    return max(map(len, tree.levels))


def law_to_check(tree: TokenTree, law):
    """A law like those of `verified_laws`: of the same type, with as many drafts."""
    most = most_joined(tree)
    return law.joined(jnp.asarray(most), most) if law.joins else law


def drafts_below(
    tree: TokenTree, tokens: Array, same: Array, group: int, node: Array, joins: bool
) -> Drafts:
    """The drafts that verify the token after `node []`, a node of a sibling group.

    Args:
      tree: shape of the tree.
      tokens: [N] token at each node.
      same: [N] bool, nodes that spell the same text as `node`.
      group: index of the group in `tree.groups`.
      node: [] its node.
      joins: whether the drafts of equal nodes join.
    """
    siblings = tree.groups[group]
    if joins:
        nodes = tree.levels[siblings.level + 1]
        in_use = same[tree.parents[nodes]]
        return Drafts(jnp.where(in_use, tokens[nodes], NO_TOKEN), jnp.asarray(nodes))
    nodes = jnp.asarray(siblings.children)[place_in(tree, group, node)]
    return Drafts(tokens[nodes], nodes)


def place_in(tree: TokenTree, group: int, node: Array) -> Array:
    """Place of `node []` among the nodes of a group: []."""
    places = np.zeros(tree.num_nodes, np.int32)
    nodes = tree.groups[group].nodes
    places[nodes] = np.arange(len(nodes))
    return jnp.asarray(places)[node]


def representative(tree: TokenTree, drafts: Drafts, token: Array) -> Array:
    """[n] bool: the one draft through which the walk goes on with `token []`.

    The first that has children, if any has: all spell the same text.
    """
    rank = jnp.asarray(np.where(tree.num_children > 0, 2, 1))[drafts.nodes]
    rank = jnp.where(drafts.tokens == token, rank, 0)
    is_first = jnp.arange(len(rank)) == jnp.argmax(rank)
    return is_first & (rank > 0)
