"""Token trees: which drafted token follows which.

A tree is given by the parent of every node; nodes are numbered level by level, the
root (the last emitted token) being node 0. All of it is static: the drawn tokens are
data, the shape is not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.validation import LARGEST, as_integer

#: Most nodes of a tree: each looks at every other one, and a mask holds all pairs.
MOST_NODES = 4096


class SiblingGroup(NamedTuple):
    """The nodes of one level that have equally many children.

    Attributes:
      level: depth of these nodes.
      nodes: [W].
      children: [W, n] the children of each, n of them.
    """

    level: int
    nodes: np.ndarray
    children: np.ndarray

    @property
    def num_children(self) -> int:
        """n, how many children each node has."""
        return self.children.shape[1]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TokenTree:
    """A rooted tree of any shape.

    Attributes:
      parent_of: parent of each node, level by level: -1 for the root, then numbers
        of earlier nodes. `(-1,)` is the root alone, which is plain decoding.

    Raises:
      TypeError: no integers.
      ValueError: no root, a parent that comes after its child (as in a cycle), or
        nodes that are not numbered level by level; `from_parents` numbers them. Or
        more than `MOST_NODES`.
    """

    parent_of: tuple[int, ...]

    def __post_init__(self):
        parents = tuple(_integers("parents", self.parent_of, -1))
        object.__setattr__(self, "parent_of", parents)
        if not parents or parents[0] != -1:
            raise ValueError(
                "parents: node 0 is the root, with parent -1; got "
                f"{str(parents[:8])[:60]}. For a tree by numbers of children see "
                "tree.branching"
            )
        depths = _depths(parents)
        if depths != sorted(depths):
            raise ValueError(
                "parents: nodes must be numbered level by level; from_parents does it"
            )

    @functools.cached_property
    def parents(self) -> np.ndarray:
        """[N] parent of each node, -1 for the root."""
        return np.asarray(self.parent_of)

    @functools.cached_property
    def depths(self) -> np.ndarray:
        """[N] number of edges from the root."""
        return np.asarray(_depths(self.parent_of))

    @property
    def num_nodes(self) -> int:
        """Number of nodes, root included."""
        return len(self.parent_of)

    @property
    def depth(self) -> int:
        """Longest number of drafted tokens on a path."""
        return int(self.depths[-1])

    @functools.cached_property
    def levels(self) -> tuple[np.ndarray, ...]:
        """Node indices of each level, the root's first."""
        return tuple(
            np.flatnonzero(self.depths == level) for level in range(self.depth + 1)
        )

    @functools.cached_property
    def num_children(self) -> np.ndarray:
        """[N] children of each node."""
        return np.bincount(self.parents[1:], minlength=self.num_nodes)

    @functools.cached_property
    def groups(self) -> tuple[SiblingGroup, ...]:
        """All nodes that have children, by level and then by their number."""
        groups = []
        for level, members in enumerate(self.levels):
            for count in sorted(set(self.num_children[members]) - {0}):
                nodes = members[self.num_children[members] == count]
                children = [np.flatnonzero(self.parents == node) for node in nodes]
                groups.append(SiblingGroup(level, nodes, np.stack(children)))
        return tuple(groups)

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """[N, N] bool: column is the row itself or one of its ancestors."""
        ancestors = np.eye(self.num_nodes, dtype=bool)
        for node in range(1, self.num_nodes):
            ancestors[node] |= ancestors[self.parents[node]]
        return ancestors

    @functools.cached_property
    def lines(self) -> np.ndarray:
        """[N, D] the nodes below the root down to each node, by depth; -1 beyond."""
        lines = np.full((self.num_nodes, self.depth), -1)
        for node in range(1, self.num_nodes):
            lines[node] = lines[self.parents[node]]
            lines[node, self.depths[node] - 1] = node
        return lines

    def same_prefix(self, tokens: Array) -> Array:
        """[N, N] bool: nodes of one level whose paths spell the same tokens.

        Args:
          tokens: [N] token at each node.
        """
        same = jnp.asarray(self.depths[:, None] == self.depths[None, :])
        parents = np.maximum(self.parents, 0)
        equal = tokens[:, None] == tokens[None, :]
        for _ in range(self.depth):
            same = same & same[parents][:, parents] & equal
        return same


def from_parents(parents: Sequence[int]) -> TokenTree:
    """A tree from the parent of every node, numbered anew level by level.

    Args:
      parents: -1 for the root, which is the first; each parent before its children.
    """
    parents = _integers("parents", parents, -1)
    depths = _depths(parents)
    order = sorted(range(len(parents)), key=lambda node: depths[node])
    place = {node: index for index, node in enumerate(order)}
    return TokenTree(tuple(place.get(parents[node], -1) for node in order))


def _integers(name: str, values: Sequence[int], low: int) -> list[int]:
    """The values as Python's integers; errors name the argument."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name}: expected a sequence of integers, got {values!r:.60} "
            f"({type(values).__name__})"
        )
    values = list(values)
    check_size(name, len(values))
    return [as_integer(name, value, low) for value in values]


def _depths(parents: Sequence[int]) -> list[int]:
    """Depth of each node; ValueError for a parent that is no earlier node."""
    depths = [0]
    for node, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < node:
            raise ValueError(
                f"parents: node {node} has parent {parent}, allowed are 0 to {node - 1}"
            )
        depths.append(depths[parent] + 1)
    return depths


def branching(widths: Sequence[int]) -> TokenTree:
    """Every node of level l has `widths[l]` children; () is the root alone."""
    parents, level = [-1], [0]
    for index, width in enumerate(_integers("widths", widths, -LARGEST)):
        if width < 1:
            raise ValueError(
                f"branching: level {index} has {width} children, at least 1"
            )
        first = len(parents)
        check_size("widths", first + width * len(level))
        parents += [node for node in level for _ in range(width)]
        level = list(range(first, len(parents)))
    return TokenTree(tuple(parents))


def paths(num_paths: int, length: int) -> TokenTree:
    """`num_paths` independent paths of `length` tokens (SpecTr, arXiv 2310.15141)."""
    return delayed(0, num_paths, length)


def chain(length: int) -> TokenTree:
    """One path of `length` tokens; 0 is the root alone."""
    return paths(1, length)


def check_size(name: str, num_nodes: int) -> None:
    """ValueError for a tree that is too large, before it is built."""
    if num_nodes > MOST_NODES:
        raise ValueError(
            f"{name}: a tree of {num_nodes} nodes; at most {MOST_NODES} are allowed"
        )


def delayed(trunk: int, num_paths: int, length: int) -> TokenTree:
    """A trunk of `trunk` tokens, and `num_paths` paths of `length` from its end.

    Drafts branch late, where target and draft have had time to differ (arXiv
    2602.16994).
    """
    trunk = as_integer("trunk", trunk, 0)
    num_paths = as_integer("num_paths", num_paths, 1)
    length = as_integer("length", length, 0)
    check_size("trunk, num_paths, length", 1 + trunk + num_paths * length)
    fork = [num_paths, *[1] * (length - 1)] if length else []
    return branching([1] * trunk + fork)


def tree_mask(
    tree: TokenTree, rows: np.ndarray | Array, base: Array, capacity: int
) -> Array:
    """Which cache slots tree nodes may attend to.

    Args:
      tree: the token tree; node v lies in slot `base + v`.
      rows: [M] the nodes that look.
      base: [B] slot of the root; slots before it hold committed tokens.
      capacity: number of slots S.

    Returns:
      [B, M, S] bool: committed slots, ancestors, and the node itself.
    """
    node = jnp.arange(capacity)[None, :] - base[:, None]
    inside = (node >= 0) & (node < tree.num_nodes)
    lineage = jnp.asarray(tree.ancestors)[rows]
    seen = lineage[:, jnp.clip(node, 0, tree.num_nodes - 1)]
    return (node < 0)[:, None] | (inside[:, None] & jnp.moveaxis(seen, 0, 1))
