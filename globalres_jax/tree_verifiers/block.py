"""Block verification of one drafted path (Sun et al., arXiv 2403.10444).

With q_i the law of draft x_i, p_i the target there, and w_0 = 1,

    w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i))
    S_i = sum_x (w_i p_{i+1}(x) - q_{i+1}(x))_+
    h_i = S_i / (S_i + 1 - w_i),      h_0 = 1,      h_L = w_L

and with independent uniform numbers the last i with U_i <= h_i is where the walk ends;
the next token is drawn from (w_i p_{i+1} - q_{i+1})_+, at the end of the path from p.
The expected number of accepted drafts, sum_i E w_i, is the largest for one path.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, TreeDecision, Walk
from globalres_jax.numerics import categorical
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transforms import normalized_residual
from globalres_jax.tree import TokenTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Block:
    """Verifies a path from its end, by the ratio of whole blocks."""

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """ValueError unless the tree is one path."""
        del laws
        widest = max(map(len, tree.levels))
        if widest > 1:
            raise ValueError(
                f"tree: Block verifies one path, got a level of {widest} nodes"
            )

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """Chance that each node is the last with U <= h, and its residual."""
        ends, rest = _ends(tokens, p, laws)
        return TreeDecision(chance_of_last(ends), normalized_residual(rest, p))

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> Walk:
        """One uniform number a node, and one draw at the last that passes."""
        ends, rest = _ends(tokens, p, laws)
        numbers = categorical.uniforms(key, (tree.num_nodes + 1,), p.dtype)
        last = draw_last(numbers[:-1, 0], ends)
        place = jnp.arange(tree.num_nodes)
        nodes = jnp.where(place <= last, place, 0)[1:].astype(jnp.int32)
        token = categorical.draw(numbers[-1], normalized_residual(rest[last], p[last]))
        return Walk(nodes, last, token)

    def expected_by_level(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> Array:
        """Mean of w_i given the drafts before x_i: sum_x min(w_{i-1} p_i, q_i): [D]."""
        w, added = jnp.ones((), p.dtype), []
        for node in range(tree.depth):
            q = _draft_row(laws[node], p.dtype)
            added.append(blockwise_sum(jnp.minimum(w * p[node], q)))
            w = _following(w, p[node], q, tokens[node + 1])
        return jnp.stack(added) if added else jnp.zeros(0, p.dtype)


def _draft_row(stacked: Any, dtype) -> Array:
    """q [V] of the one node of a level."""
    law = jax.tree.map(lambda x: x[0], stacked)
    return law.spread(law.first).astype(dtype)


def _following(w: Array, p: Array, q: Array, token: Array) -> Array:
    """w_i of draft x_i, from w_{i-1}; 0 where x_i could not be drawn."""
    return jnp.minimum(1, quotient(w * p[token], q[token]))


def chance_of_last(ends: Array) -> Array:
    """Chance that each node of a path is the last with U <= h, `ends [N]`: [N]."""
    passed = jnp.cumprod((1 - ends)[::-1])[::-1]
    return ends * jnp.concatenate([passed[1:], jnp.ones(1, ends.dtype)])


def draw_last(uniform: Array, ends: Array) -> Array:
    """That node [] for `uniform [N]` numbers; the root always passes."""
    place = jnp.arange(len(ends), dtype=jnp.int32)
    return jnp.max(jnp.where(uniform < ends, place, 0))


def _ends(tokens: Array, p: Array, laws: tuple) -> tuple[Array, Array]:
    """h [N] of every node of a path, and what its next token is drawn from [N, V].

    Args:
      tokens: [N] node i holds draft x_i.
      p: [N, V] row i is p_{i+1}.
      laws: of one draft each, stacked [1].
    """
    w = jnp.ones((), p.dtype)
    ends, rest = [], []
    for node, stacked in enumerate(laws):
        q = _draft_row(stacked, p.dtype)
        left = jnp.maximum(w * p[node] - q, 0)
        total = blockwise_sum(left)
        ends.append(quotient(total, total + 1 - w))
        rest.append(left)
        w = _following(w, p[node], q, tokens[node + 1])
    ends, rest = jnp.stack([*ends, w]), jnp.stack([*rest, p[-1]])
    return ends.at[0].set(1), rest
