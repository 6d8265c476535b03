"""How many drafts a rule accepts of a drawn tree, on average over its own draws."""

from __future__ import annotations

import jax.numpy as jnp

from globalres_jax.base import Array, TreeVerifier
from globalres_jax.tree import TokenTree


def expected_accepted(
    rule: TreeVerifier, tree: TokenTree, tokens: Array, p: Array, laws: tuple
) -> Array:
    """Expected number of accepted drafts of one tree: [].

    Its mean over drawn trees is that of the accepted lengths, with less variance. A
    rule may know a number of the same mean and smaller variance, as `LayerResolution`
    does, by a method of this name. Differentiable where the rule is.

    Args:
      rule: the rule.
      tree: shape of the tree.
      tokens: [N] token at each node.
      p: [N, V] target distribution after each node.
      laws: for each of `tree.groups`, the laws of its nodes, stacked.
    """
    own = getattr(rule, "expected_accepted", None)
    if own is not None:
        return own(tree, tokens, p, laws)
    stop = rule.law(tree, tokens, p, laws).stop
    return stop @ jnp.asarray(tree.depths, stop.dtype)
