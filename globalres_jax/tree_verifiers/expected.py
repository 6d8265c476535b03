"""How many drafts a rule accepts of a drawn tree, on average over its own draws."""

from __future__ import annotations

import jax.numpy as jnp

from globalres_jax.base import Array, TreeVerifier
from globalres_jax.numerics.sums import product
from globalres_jax.tree import TokenTree


def expected_accepted(
    rule: TreeVerifier, tree: TokenTree, tokens: Array, p: Array, laws: tuple
) -> Array:
    """Expected number of accepted drafts of one tree: [].

    Its mean over drawn trees is that of the accepted lengths, with less variance. A
    rule may know a number of the same mean and smaller variance, by a method of this
    name or by one named `expected_by_level`, as `LayerResolution` does, `Block`, and
    `GreedyMultiPathBlock`. Differentiable where the rule is.

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
    if hasattr(rule, "expected_by_level"):
        return jnp.sum(rule.expected_by_level(tree, tokens, p, laws))
    stop = rule.law(tree, tokens, p, laws).stop
    return product(stop, jnp.asarray(tree.depths, stop.dtype))


def expected_by_level(
    rule: TreeVerifier, tree: TokenTree, tokens: Array, p: Array, laws: tuple
) -> Array:
    """Expected numbers of accepted drafts that every further level adds: [D].

    They sum to what `expected_accepted` has as its mean. From the root down a rule
    does not see deeper levels, nor do `Block`, `GreedyMultiPathBlock` and
    `LayerResolution` for what a level adds, by a method of this name: the first numbers
    are then those of a tree that ends earlier. Of other rules, the chance to accept
    that many tokens of this tree.
    """
    own = getattr(rule, "expected_by_level", None)
    if own is not None:
        return own(tree, tokens, p, laws)
    # A law needs all rows: an array, whatever they were shown as.
    p = p[jnp.arange(tree.num_nodes)]
    return reached_by_level(tree, rule.law(tree, tokens, p, laws).stop)


def reached_by_level(tree: TokenTree, stop: Array) -> Array:
    """Chance to accept so many drafts or more: [D], from where a step ends, [N]."""
    depths = jnp.asarray(tree.depths)
    deeper = depths[None, :] > jnp.arange(tree.depth)[:, None]
    return jnp.sum(jnp.where(deeper, stop[None, :], 0), axis=1)
