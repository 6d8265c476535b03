"""Token trees: which drafted token follows which.

A tree is given by how many children every node of a level has; its nodes are numbered
level by level, the root (the last emitted token) being node 0. All of it is static:
the drawn tokens are data, the shape is not.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TokenTree:
    """A tree in which all nodes of one level have equally many children.

    Attributes:
      branching: children of each node, for the root's level downwards; `()` is the
        root alone, which is plain decoding.
    """

    branching: tuple[int, ...]

    def __post_init__(self):
        for level, width in enumerate(self.branching):
            if width < 1:
                raise ValueError(
                    f"branching: level {level} has {width} children, at least 1"
                )

    @property
    def depth(self) -> int:
        """Longest number of drafted tokens on a path."""
        return len(self.branching)

    @functools.cached_property
    def levels(self) -> tuple[np.ndarray, ...]:
        """Node indices of each level, the root's first."""
        widths = np.cumprod((1, *self.branching))
        ends = np.cumsum(widths)
        return tuple(np.arange(e - w, e) for e, w in zip(ends, widths, strict=True))

    @property
    def num_nodes(self) -> int:
        """Number of nodes, root included."""
        return int(self.levels[-1][-1]) + 1

    @property
    def num_internal(self) -> int:
        """Number of nodes that have children; they are nodes 0..num_internal - 1."""
        return self.num_nodes - len(self.levels[-1])

    @functools.cached_property
    def parents(self) -> np.ndarray:
        """[N] parent of each node, -1 for the root."""
        parents = [np.array([-1])]
        for level, width in zip(self.levels, self.branching, strict=False):
            parents.append(np.repeat(level, width))
        return np.concatenate(parents)

    @functools.cached_property
    def depths(self) -> np.ndarray:
        """[N] number of edges from the root."""
        return np.repeat(np.arange(self.depth + 1), [len(x) for x in self.levels])

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """[N, N] bool: column is the row itself or one of its ancestors."""
        ancestors = np.eye(self.num_nodes, dtype=bool)
        for node in range(1, self.num_nodes):
            ancestors[node] |= ancestors[self.parents[node]]
        return ancestors

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


def paths(num_drafts: int, length: int) -> TokenTree:
    """`num_drafts` independent paths of `length` tokens (SpecTr, arXiv 2310.15141)."""
    if num_drafts < 1:
        raise ValueError(f"num_drafts: must be at least 1, got {num_drafts}")
    if length < 0:
        raise ValueError(f"draft_length: must be 0 or more, got {length}")
    return TokenTree((num_drafts, *[1] * (length - 1)) if length else ())


def tree_mask(tree: TokenTree, rows: np.ndarray, base: Array, capacity: int) -> Array:
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
    lineage = jnp.asarray(tree.ancestors[rows])
    seen = lineage[:, jnp.clip(node, 0, tree.num_nodes - 1)]
    return (node < 0)[:, None] | (inside[:, None] & jnp.moveaxis(seen, 0, 1))
