"""What the best single-position rule could have accepted along a walk."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, TargetRows, Walk
from globalres_jax.transport.plan import optimal_acceptance_rate
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers.junctions import junctions, kind_of


def optimum_along(
    tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple, walk: Walk
) -> Array:
    """The optimal acceptance rate at each node that a walk visited: [D].

    Args:
      tree: shape of the tree.
      tokens: [N] token at each node.
      p: [N, V] target distribution after each node.
      laws: for each group, the stacked laws of the children of one node.
      walk: what was accepted; depths that it did not reach, and nodes without drafts,
        get 0.
    """
    kinds = junctions(tree, tree.same_prefix(tokens), laws)
    kind = jnp.asarray(kind_of(tree, kinds))
    ways = [lambda node: jnp.zeros((), p.dtype)]
    for alike in kinds:
        ways.append(
            lambda node, alike=alike: optimal_acceptance_rate(
                p[node], alike.law(node)
            ).astype(p.dtype)
        )

    def at_level(level: Array) -> Array:
        node = jnp.where(level > 0, walk.nodes[jnp.maximum(level - 1, 0)], 0)
        reached = level <= walk.accept_length
        return jax.lax.switch(jnp.where(reached, kind[node], 0), ways, node)

    if tree.depth == 0:
        return jnp.zeros(0, p.dtype)
    return jax.lax.map(at_level, jnp.arange(tree.depth))
