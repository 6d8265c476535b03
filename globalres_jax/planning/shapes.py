"""Shapes of draft trees that a plan chooses from, and how they are written."""

from __future__ import annotations

import re
from typing import NamedTuple

from globalres_jax.tree import TokenTree, paths


class Shape(NamedTuple):
    """Independent paths of one length from the root; no length is plain decoding.

    Attributes:
      num_paths: K.
      length: L, drafted tokens on each.
    """

    num_paths: int
    length: int

    @property
    def num_nodes(self) -> int:
        """Nodes of the tree, the root included: K L + 1."""
        return self.num_paths * self.length + 1

    @property
    def tree(self) -> TokenTree:
        """The token tree."""
        return paths(*self)

    def __str__(self) -> str:
        if self.length == 0:
            return "plain"
        if self.num_paths == 1:
            return f"chain:{self.length}"
        return f"paths:{self.num_paths},{self.length}"


PLAIN = Shape(1, 0)

#: Few, since the sizes of target calls that are measured are compiled for it. 4, 8 and
#: 16 nodes fill the tiles of a matrix product.
CANDIDATES = (
    PLAIN,
    *(Shape(1, length) for length in (1, 3, 5, 7, 11, 15)),
    *(Shape(*shape) for shape in ((2, 3), (2, 7), (3, 5), (4, 4), (5, 6), (8, 7))),
)


def parse_shape(text: str) -> Shape:
    """`plain`, `chain:L` or `paths:K,L`; ValueError for anything else."""
    if text == "plain":
        return PLAIN
    found = re.fullmatch(r"(?:chain:|paths:([1-9]\d*),)([1-9]\d*)", text)
    if found is None:
        raise ValueError(
            f"tree: expected auto, plain, chain:LENGTH or paths:NUMBER,LENGTH, got "
            f"{text!r}"
        )
    return Shape(int(found[1] or 1), int(found[2]))
