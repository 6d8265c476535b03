"""Verification: plan all nodes of a token tree at once, then walk it from the root.

At each node of the walk the drafts are the children of all nodes whose path spells the
text accepted so far; given that text they are i.i.d., so a single-step rule applies
with their number as data. Its token is emitted; where it is among the drafts the walk
goes on from there, else the step ends. Everything here is for one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array, Decision, Verifier
from globalres_jax.numerics.rows import map_rows
from globalres_jax.numerics.categorical import sample
from globalres_jax.transport.plan import optimal_acceptance_rate
from globalres_jax.tree import TokenTree


class Walk(NamedTuple):
    """What one step emits.

    Attributes:
      tokens: [D + 1] emitted tokens; `accept_length + 1` of them count.
      accept_length: [] number of them that were drafted.
      nodes: [D] tree node of each accepted token (0 where there is none).
      optimum: [D] optimal acceptance rate at each node visited, 0 elsewhere and
        where it was not asked for.
    """

    tokens: Array
    accept_length: Array
    nodes: Array
    optimum: Array


def draw(key: Array, decision: Decision, draft_tokens: Array) -> Array:
    """Samples the emitted token from a `Decision`: [] int32."""
    key_slot, key_residual = jax.random.split(key)
    rejected = jnp.sum(decision.residual, keepdims=True)
    slot = sample(key_slot, jnp.concatenate([decision.accept, rejected]))
    token = sample(key_residual, decision.residual)
    num_slots = draft_tokens.shape[0]
    accepted = draft_tokens[jnp.minimum(slot, num_slots - 1)]
    return jnp.where(slot < num_slots, accepted, token)


def survivors(tree: TokenTree, tokens: Array) -> Array:
    """[I] for each internal node, how many drafts verify the token after it."""
    same = tree.same_prefix(tokens)
    width = np.array([tree.branching[d] for d in tree.depths[: tree.num_internal]])
    alike = same[: tree.num_internal, : tree.num_internal]
    return jnp.sum(jnp.where(alike, jnp.asarray(width)[None, :], 0), axis=1)


def plan_tree(
    tree: TokenTree,
    tokens: Array,
    p: Array,
    q: Array,
    law: Callable,
    verifier: Verifier,
) -> tuple[Any, Any]:
    """Laws and plans of all internal nodes, from one call.

    Args:
      tree: shape of the tree.
      tokens: [N] token at each node.
      p: [N, V] target distribution after each node.
      q: [I, V] draft distribution at each internal node.
      law: `law(q, num_drafts)`.
      verifier: the single-step rule.
    """

    def one(p_row, q_row, num_drafts):
        node_law = law(q_row, num_drafts)
        return node_law, verifier.prepare(p_row, node_law)

    return map_rows(one, p[: tree.num_internal], q, survivors(tree, tokens))


def walk_tree(
    key: Array,
    tree: TokenTree,
    tokens: Array,
    p: Array,
    laws: Any,
    plans: Any,
    verifier: Verifier,
    measure_optimum: bool = True,
) -> Walk:
    """Walks the tree top-down, one draw a level, and adds the bonus token.

    Args:
      key: random key of this row and step.
      tree: shape of the tree.
      tokens: [N] token at each node.
      p: [N, V] target distribution after each node.
      laws: draft laws of the internal nodes, stacked.
      plans: what `verifier.prepare` gave for them, stacked.
      verifier: the single-step rule.
      measure_optimum: whether to compute `optimum` (one sort a level).
    """
    keys = jax.random.split(key, tree.depth + 1)
    alive = jnp.ones(1, bool)
    node = jnp.zeros((), jnp.int32)
    walking = jnp.ones((), bool)
    emitted, nodes, optimum = [], [], []
    for level in range(tree.depth):
        children = tree.levels[level + 1]
        offset = tree.parents[children] - tree.levels[level][0]
        drafts = jnp.where(alive[offset], tokens[children], NO_TOKEN)
        law, plan = jax.tree.map(lambda x, v=node: x[v], (laws, plans))
        decision = verifier.resolve(plan, p[node], law, drafts)
        token = draw(keys[level], decision, drafts)
        emitted.append(token)
        if measure_optimum:
            rate = optimal_acceptance_rate(p[node], law)
            optimum.append(jnp.where(walking, rate, 0))
        alive = (drafts == token) & walking
        walking = jnp.any(alive)
        child = jnp.asarray(children, jnp.int32)[jnp.argmax(alive)]
        node = jnp.where(walking, child, node)
        nodes.append(jnp.where(walking, child, 0))
    bonus = sample(keys[tree.depth], p[node])
    emitted.append(bonus)
    nodes = jnp.stack(nodes) if nodes else jnp.zeros(0, jnp.int32)
    return Walk(
        tokens=jnp.stack(emitted),
        accept_length=jnp.sum(nodes > 0).astype(jnp.int32),
        nodes=nodes,
        optimum=jnp.stack(optimum) if optimum else jnp.zeros(tree.depth, p.dtype),
    )
