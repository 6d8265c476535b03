"""What the best single-position rule could have accepted along a walk."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Walk
from globalres_jax.transport.plan import optimal_acceptance_rate
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers.junctions import place_in, verified_laws


def optimum_along(
    tree: TokenTree, tokens: Array, p: Array, laws: tuple, walk: Walk
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
    rates = [jnp.zeros((), p.dtype)] * tree.depth
    laws = verified_laws(tree, tree.same_prefix(tokens), laws)
    visited = jnp.concatenate([jnp.zeros(1, jnp.int32), walk.nodes])
    for index, group in enumerate(tree.groups):
        level = group.level
        node = visited[level]
        here = (level <= walk.accept_length) & jnp.any(node == group.nodes)
        place = place_in(tree, index, node)
        law = jax.tree.map(lambda x, place=place: x[place], laws[index])
        rate = optimal_acceptance_rate(p[node], law)
        rates[level] = rates[level] + jnp.where(here, rate, 0)
    return jnp.stack(rates) if rates else jnp.zeros(0, p.dtype)
