"""The exact law of a whole decoding step, by enumeration of every drafted tree.

Texts of d tokens over a vocabulary of V are numbered 0 to V^d - 1, first token first:
text y after text x is x V + y. A language model is a table for each d, [V^d, V].
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, TreeVerifier
from globalres_jax.numerics.sums import product
from globalres_jax.tree import TokenTree

_MOST_TREES = 200_000


@jax.jit
def joint_law(tables: Sequence[Array]) -> Array:
    """The law of the first D + 1 tokens, [V^(D + 1)], from tables [V^d, V], d <= D."""
    law = jnp.ones(1)
    for table in tables:
        law = (law[:, None] * jnp.asarray(table)).reshape(-1)
    return law


def step_law(
    rule: TreeVerifier,
    tree: TokenTree,
    target: Sequence[Array],
    draft: Callable[[int, int], object],
) -> Array:
    """The law of D + 1 tokens, of which one step emits the first and p the others.

    All trees that can be drafted are enumerated, and all outcomes of the rule. The rule
    is lossless if the result equals `joint_law(target)`.

    Args:
      rule: rule for trees; hashable.
      tree: shape, of depth D.
      target: for each d from 0 to D the table [V^d, V] of p.
      draft: `draft(level, num_drafts)` gives the laws of that many drafts after every
        text of `level` tokens, stacked [V^level].

    Returns:
      [V^(D + 1)].
    """
    drawn = _enumerated(rule, tree, target, draft)
    return _law_of_texts(tuple(map(jnp.asarray, target)), drawn, tree=tree)


def expected_length(
    rule: TreeVerifier,
    tree: TokenTree,
    target: Sequence[Array],
    draft: Callable[[int, int], object],
) -> Array:
    """Mean number of drafts that one step accepts, over all trees: [].

    For the arguments see `step_law`.
    """
    drawn = _enumerated(rule, tree, target, draft)
    depths = jnp.asarray(tree.depths, drawn.stop.dtype)
    return product(drawn.chance, product(drawn.stop, depths))


class _Enumeration(NamedTuple):
    """All T drafted trees and what a rule makes of them.

    Attributes:
      texts: [T, N] number of the text down to each node.
      chance: [T] of drawing the tree.
      stop: [T, N] probability that the step ends at each node.
      next: [T, N, V] law of the token after it.
    """

    texts: Array
    chance: Array
    stop: Array
    next: Array


def drawn_trees(
    tree: TokenTree, size: int, draft: Callable[[int, int], object]
) -> tuple[Array, Array]:
    """All T trees that can be drafted: the text down to each node [T, N], chance [T].

    Args:
      tree: shape.
      size: V.
      draft: see `step_law`.

    Raises:
      ValueError: there are more than 200,000.
    """
    return _draw_all(_laws(tree, size, draft), size=size, tree=tree)


def _enumerated(rule, tree: TokenTree, target, draft) -> _Enumeration:
    laws = _laws(tree, target[0].shape[-1], draft)
    return _enumerate(tuple(map(jnp.asarray, target)), laws, rule=rule, tree=tree)


def _laws(tree: TokenTree, size: int, draft) -> tuple:
    """The laws of each of `tree.groups` after every text, stacked."""
    if size ** (tree.num_nodes - 1) > _MOST_TREES:
        raise ValueError(
            f"tree: {size}^{tree.num_nodes - 1} drafted trees are too many to enumerate"
        )
    return tuple(draft(group.level, group.num_children) for group in tree.groups)


@functools.partial(jax.jit, static_argnames=("rule", "tree"))
def _enumerate(target: tuple, laws: tuple, *, rule, tree: TokenTree) -> _Enumeration:
    size = target[0].shape[-1]

    def outcome(tokens: Array) -> _Enumeration:
        text, drawn_from, chance = _drawn(tree, laws, size, tokens)
        p = jnp.stack(
            [target[depth][text[node]] for node, depth in enumerate(tree.depths)]
        )
        decision = rule.law(tree, tokens, p, drawn_from)
        return _Enumeration(text, chance, *decision)

    return jax.vmap(outcome)(_all_tokens(tree, size))


@functools.partial(jax.jit, static_argnames=("size", "tree"))
def _draw_all(laws: tuple, *, size: int, tree: TokenTree) -> tuple[Array, Array]:
    def outcome(tokens: Array) -> tuple[Array, Array]:
        text, _, chance = _drawn(tree, laws, size, tokens)
        return text, chance

    return jax.vmap(outcome)(_all_tokens(tree, size))


def _all_tokens(tree: TokenTree, size: int) -> Array:
    """[T, N] token at each node of all trees."""
    grid = itertools.product(range(size), repeat=tree.num_nodes - 1)
    return jnp.asarray([(0, *drawn) for drawn in grid], jnp.int32)


def _drawn(tree: TokenTree, laws: tuple, size: int, tokens: Array):
    """Of one tree the text at each node [N], the laws of its nodes, its chance []."""
    text = _texts(tree, tokens, size)
    drawn_from, chance = [], 1.0
    for group, law in zip(tree.groups, laws, strict=True):
        of_nodes = jax.tree.map(lambda x, at=text[group.nodes]: x[at], law)
        children = tokens[group.children]
        each = jax.vmap(lambda one, x: one.draft_probability(x))(of_nodes, children)
        chance = chance * jnp.prod(each)
        drawn_from.append(of_nodes)
    return text, tuple(drawn_from), chance


@functools.partial(jax.jit, static_argnames="tree")
def _law_of_texts(target: tuple, drawn: _Enumeration, *, tree: TokenTree) -> Array:
    emitted = (drawn.chance[:, None] * drawn.stop)[..., None] * drawn.next
    law = jnp.zeros(1, emitted.dtype)
    for depth, nodes in enumerate(tree.levels):
        # What was emitted before goes on as the target does.
        law = law[:, None] * target[depth]
        law = law.at[drawn.texts[:, nodes]].add(emitted[:, nodes]).reshape(-1)
    return law


def _texts(tree: TokenTree, tokens: Array, size: int) -> Array:
    """Number of the text down to each node: [N]."""
    texts = [jnp.zeros((), jnp.int32)]
    for node in range(1, tree.num_nodes):
        texts.append(texts[tree.parents[node]] * size + tokens[node])
    return jnp.stack(texts)


def random_tables(
    rng: np.random.Generator, size: int, depth: int, spread: float = 0.7
) -> list[np.ndarray]:
    """A random model of texts up to `depth` tokens: tables [V^d, V], float64."""
    alpha = np.full(size, spread)
    return [rng.dirichlet(alpha, size**d) for d in range(depth + 1)]
