"""Verification from the root down, by any single-position rule.

At each node of the walk the drafts below it are a sample of a known law, given the
text accepted so far, so a single-position rule applies. Its token is emitted; where it
is among the drafts the walk goes on from there, else the step ends.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Decision, TreeDecision, Verifier, Walk
from globalres_jax.numerics.categorical import sample
from globalres_jax.numerics.rows import map_rows
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers.junctions import (
    Drafts,
    drafts_below,
    law_to_check,
    place_in,
    representative,
    verified_laws,
)


class _Planned(NamedTuple):
    """A drafted tree, ready for decisions at its nodes."""

    tokens: Array
    p: Array
    same: Array
    laws: tuple
    plans: tuple


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopDown:
    """A single-position rule, node after node from the root.

    Lossless for every rule that is (SpecTr, arXiv 2310.15141).

    Attributes:
      verifier: the rule.
    """

    verifier: Verifier

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """Raises TypeError or ValueError if the rule does not serve a level's law."""
        for law in laws:
            self.verifier.check(law_to_check(tree, law))

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> Walk:
        """Walks the tree, one draw a level: tokens [N], p [N, V]."""
        planned = self._plan(tree, tokens, p, laws)
        keys = jax.random.split(key, tree.depth + 1)
        node = jnp.zeros((), jnp.int32)
        walking = jnp.ones((), bool)
        nodes, next_token = [], jnp.zeros((), jnp.int32)
        for level in range(tree.depth):
            token, child = self._descend(keys[level], tree, planned, level, node)
            next_token = jnp.where(walking, token, next_token)
            walking = walking & (child > 0)
            node = jnp.where(walking, child, node)
            nodes.append(jnp.where(walking, child, 0))
        bonus = sample(keys[tree.depth], p[node])
        nodes = jnp.stack(nodes) if nodes else jnp.zeros(0, jnp.int32)
        return Walk(
            nodes=nodes,
            accept_length=jnp.sum(nodes > 0).astype(jnp.int32),
            next_token=jnp.where(walking, bonus, next_token),
        )

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """Chance and next token of every place where the walk can end."""
        planned = self._plan(tree, tokens, p, laws)
        # Leaves draw from p; the nodes of groups are overwritten below.
        reach = jnp.zeros(tree.num_nodes, p.dtype).at[0].set(1)
        stays, following = jnp.ones_like(reach), p
        for index, group in enumerate(tree.groups):
            below = functools.partial(self._outcomes, tree, planned, index)
            children, chance, left = jax.vmap(below)(jnp.asarray(group.nodes))
            reach = reach.at[children].add(reach[group.nodes, None] * chance)
            total = jnp.sum(left, axis=1)
            stays = stays.at[group.nodes].set(total)
            left = left / jnp.where(total > 0, total, 1)[:, None]
            following = following.at[group.nodes].set(left)
        return TreeDecision(reach * stays, following)

    def _plan(self, tree: TokenTree, tokens: Array, p: Array, laws: tuple) -> _Planned:
        """Plans for all inner nodes; groups whose laws are alike share one call."""
        same = tree.same_prefix(tokens)
        laws = verified_laws(tree, same, laws)
        kinds: dict[Any, list[int]] = {}
        for index, law in enumerate(laws):
            leaves, structure = jax.tree.flatten(law)
            shapes = tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)
            kinds.setdefault((structure, shapes), []).append(index)
        plans: dict[int, Any] = {}
        for indices in kinds.values():
            rows = [tree.groups[index].nodes for index in indices]
            alike = [laws[index] for index in indices]
            together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *alike)
            found = map_rows(self.verifier.prepare, p[np.concatenate(rows)], together)
            ends = np.cumsum([len(nodes) for nodes in rows])
            for index, end, nodes in zip(indices, ends, rows, strict=True):
                part = slice(end - len(nodes), end)
                plans[index] = jax.tree.map(lambda x, part=part: x[part], found)
        ordered = tuple(plans[index] for index in range(len(laws)))
        return _Planned(tokens, p, same, laws, ordered)

    def _decide(
        self, tree: TokenTree, planned: _Planned, group: int, node: Array
    ) -> tuple[Drafts, Decision]:
        """The drafts below a node of a group, and what the rule makes of them."""
        tokens, p, same, laws, plans = planned
        place = place_in(tree, group, node)
        law, plan = jax.tree.map(lambda x: x[place], (laws[group], plans[group]))
        drafts = drafts_below(tree, tokens, same[node], group, node, law.joins)
        return drafts, self.verifier.resolve(plan, p[node], law, drafts.tokens)

    def _descend(
        self, key: Array, tree: TokenTree, planned: _Planned, level: int, node: Array
    ) -> tuple[Array, Array]:
        """The token emitted after `node []` of a level, and the child it leads to."""
        groups = [i for i, group in enumerate(tree.groups) if group.level == level]
        inner = sum(len(tree.groups[i].nodes) for i in groups)
        has_leaves = inner < len(tree.levels[level])
        ways = len(groups) + has_leaves
        keys = (key,) if ways == 1 else tuple(jax.random.split(key, ways))
        token, child = jnp.zeros((2,), jnp.int32)
        if has_leaves:
            token = sample(keys[-1], planned.p[node])
        for way, index in zip(keys, groups, strict=False):
            drafts, decision = self._decide(tree, planned, index, node)
            drawn = draw(way, decision, drafts.tokens)
            chosen = representative(tree, drafts, drawn)
            below = jnp.sum(jnp.where(chosen, drafts.nodes, 0)).astype(jnp.int32)
            here = jnp.any(node == tree.groups[index].nodes) if ways > 1 else True
            token = jnp.where(here, drawn, token)
            child = jnp.where(here, below, child)
        return token, child

    def _outcomes(
        self, tree: TokenTree, planned: _Planned, group: int, node: Array
    ) -> tuple[Array, Array, Array]:
        """Drafts below a node [n], the chance to go on through each [n], the rest [V].

        Tokens that stand in several slots go on through their representative.
        """
        drafts, decision = self._decide(tree, planned, group, node)
        tokens = drafts.tokens
        size = planned.p.shape[-1]
        slots = jnp.where(tokens >= 0, tokens, size)
        emitted = decision.residual.at[slots].add(decision.accept, mode="drop")
        leads = jax.vmap(lambda token: representative(tree, drafts, token))(tokens)
        leads = jnp.diagonal(leads) & (tokens >= 0)
        chance = jnp.where(leads, emitted[tokens], 0)
        return drafts.nodes, chance, emitted.at[slots].set(0, mode="drop")


def draw(key: Array, decision: Decision, draft_tokens: Array) -> Array:
    """Samples the emitted token from a `Decision`: [] int32."""
    key_slot, key_residual = jax.random.split(key)
    rejected = jnp.sum(decision.residual, keepdims=True)
    slot = sample(key_slot, jnp.concatenate([decision.accept, rejected]))
    token = sample(key_residual, decision.residual)
    num_slots = draft_tokens.shape[0]
    accepted = draft_tokens[jnp.minimum(slot, num_slots - 1)]
    return jnp.where(slot < num_slots, accepted, token)
