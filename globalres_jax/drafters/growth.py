"""A token tree drawn level by level, with one call of a draft model for each level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array, Cache, DraftPolicy, Proposal
from globalres_jax.numerics.categorical import uniforms
from globalres_jax.tree import TokenTree, tree_mask


class Calls(NamedTuple):
    """A draft model's part in growing a tree.

    What a node hands to its children is a pytree of arrays [B, W, ...], for W nodes.

    Attributes:
      first: `first() -> (logits [B, 1, K] after the root, what it hands on, cache)`.
      read: `read(tokens [B, W], handed, positions, cache, mask) -> (logits [B, W, K],
        what they hand on, cache)`, as a `ModelFn` appends them to the cache; `handed`
        is what each got from its parent.
      ids: [K] the tokens that the logits are of; None for the whole vocabulary.
    """

    first: Callable[[], tuple[Array, Any, Cache]]
    read: Callable[..., tuple[Array, Any, Cache]]
    ids: Array | None


def grow_tree(
    keys: Array,
    root: Array,
    base: Array,
    calls: Calls,
    tree: TokenTree,
    policy: DraftPolicy,
) -> tuple[Proposal, Cache]:
    """Draws a tree, one model call a level; node v lies in slot `base + v`.

    Equal levels are one loop, so that the model is compiled once for all of them.

    Args:
      keys: [B] random keys.
      root: [B] token at the root.
      base: [B] its slot.
      calls: of the model.
      tree: shape of the tree, at least one level below its root.
      policy: how to draw.

    Returns:
      The tree, and the cache with its inner nodes.
    """
    numbers = _numbers(keys, tree)
    tokens, laws, paths = [root[:, None]], [], None
    if policy.reads_paths:
        paths = jnp.full((len(root), 1, tree.depth), NO_TOKEN, jnp.int32)
    for run in _runs(tree, policy):
        if run[0] == 0:
            logits, handed, cache = calls.first()
            drawn = [
                _draw_level(numbers[:, :1], tree, 0, logits, policy, calls.ids, paths)
            ]
            handed = _hand_on(handed, tree, 0)
            paths = _longer(paths, drawn[0][0], tree, 0, 0)
        else:
            above = tokens[-1], handed, paths, cache
            (handed, paths, cache), drawn = _grow(
                numbers, above, base, calls, tree, run, policy
            )
        for drawn_tokens, level_laws in drawn:
            tokens.append(drawn_tokens)
            laws += level_laws
    return Proposal(jnp.concatenate(tokens, 1), tuple(laws)), cache


def _grow(
    numbers: Array,
    above: tuple[Array, Any, Array | None, Cache],
    base: Array,
    calls: Calls,
    tree: TokenTree,
    run: tuple[int, ...],
    policy: DraftPolicy,
) -> tuple[tuple[Any, Array | None, Cache], list]:
    """Draws the levels below a run of equal levels.

    Args:
      numbers: [B, N, n, UNIFORMS] uniform, for the children of each node.
      above: tokens [B, W] of the first of these levels, what they were handed, the
        paths [B, W, D] down to them (None where they are not asked for), and the cache
        with all nodes above.
      base: [B] slot of the root.
      calls: of the model.
      tree: shape of the tree.
      run: the levels, R of them.
      policy: how to draw.

    Returns:
      What the last of them hand on, the paths below them, and the cache; for each
      level the tokens [B, W'] below it and their laws.
    """
    nodes = jnp.asarray(np.stack([tree.levels[level] for level in run]))

    def one(carry, level):
        tokens, handed, paths, cache = carry
        depth, here = level
        positions = jnp.broadcast_to(base[:, None] + depth, tokens.shape)
        mask = tree_mask(tree, here, base, cache.capacity)
        logits, handed, cache = calls.read(tokens, handed, positions, cache, mask)
        drawn, laws = _draw_level(
            numbers[:, here], tree, run[0], logits, policy, calls.ids, paths
        )
        handed = _hand_on(handed, tree, run[0])
        paths = _longer(paths, drawn, tree, run[0], depth)
        return (drawn, handed, paths, cache), (drawn, laws)

    if len(run) == 1:
        (_, *below), drawn = one(above, (run[0], nodes[0]))
        return tuple(below), [drawn]
    (_, *below), drawn = jax.lax.scan(one, above, (jnp.asarray(run), nodes))
    each = [jax.tree.map(lambda x, i=i: x[i], drawn) for i in range(len(run))]
    return tuple(below), each


def _hand_on(handed: Any, tree: TokenTree, level: int) -> Any:
    """From [B, W, ...] at the nodes of a level to [B, W', ...] at their children."""
    parents = tree.parents[tree.levels[level + 1]] - tree.levels[level][0]
    return jax.tree.map(lambda x: x[:, parents], handed)


def _runs(tree: TokenTree, policy: DraftPolicy) -> list[tuple[int, ...]]:
    """The inner levels in order, neighbours that are alike together; the root's alone.

    Alike are levels whose nodes, families and laws are: one then follows from the other
    by one and the same step.
    """

    def shape(level: int):
        groups = [group for group in tree.groups if group.level == level]
        first, below = tree.levels[level][0], tree.levels[level + 1][0]
        families = [(g.nodes - first, g.children - below) for g in groups]
        return (
            len(tree.levels[level]),
            len(tree.levels[level + 1]),
            policy.maker(level),
            [(nodes.tolist(), children.tolist()) for nodes, children in families],
        )

    runs: list[tuple[int, ...]] = []
    for level in range(tree.depth):
        if level > 1 and shape(level) == shape(level - 1):
            runs[-1] += (level,)
        else:
            runs.append((level,))
    return runs


def _draw_level(
    numbers: Array,
    tree: TokenTree,
    level: int,
    logits: Array,
    policy: DraftPolicy,
    ids: Array | None,
    paths: Array | None,
) -> tuple[Array, list]:
    """The tokens of the level below, and the laws of its sibling groups.

    Args:
      numbers: [B, W, n, UNIFORMS] uniform.
      tree: shape of the tree.
      level: of the nodes whose children are drawn.
      logits: [B, W, K] after all W nodes of that level.
      policy: how to draw from them.
      ids: [K] the tokens that they are of; None for the whole vocabulary.
      paths: [B, W, D] tokens down to each of them, None where they are not asked for.
    """
    members = tree.levels[level]
    first_child = tree.levels[level + 1][0]
    groups = [group for group in tree.groups if group.level == level]
    tokens = jnp.zeros((len(logits), len(tree.levels[level + 1])), jnp.int32)
    laws = []
    for group in groups:
        places = group.nodes - members[0]
        # All of a level is no selection, which XLA would make a copy of.
        every = len(places) == len(members)
        rows = logits if every else logits[:, places]
        known = {} if ids is None else {"tokens": ids}
        if paths is not None:
            known["paths"] = paths if every else paths[:, places]
        law = policy.law(rows, level, group.num_children, **known)
        own = numbers[:, places, : group.num_children]
        drawn = jax.vmap(jax.vmap(lambda one, own: one.draw(own)))(law, own)
        tokens = tokens.at[:, group.children - first_child].set(drawn)
        laws.append(law)
    return tokens, laws


def _longer(
    paths: Array | None, tokens: Array, tree: TokenTree, level: int, depth: Array | int
) -> Array | None:
    """Paths [B, W', D] down to `tokens [B, W']`, one level below `paths [B, W, D]`.

    The nodes above lie as those of `level` do, and at `depth []`.
    """
    if paths is None:
        return None
    return _hand_on(paths, tree, level).at[:, :, depth].set(tokens)


def _numbers(keys: Array, tree: TokenTree) -> Array:
    """Uniform numbers for all draws of a tree: [B, N, n, UNIFORMS], n children."""
    shape = tree.num_nodes, int(tree.num_children.max())
    return jax.vmap(lambda key: uniforms(key, shape))(keys)
