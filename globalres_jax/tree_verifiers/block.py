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
        passed = jnp.cumprod((1 - ends)[::-1])[::-1]
        beyond = jnp.concatenate([passed[1:], jnp.ones(1, p.dtype)])
        return TreeDecision(ends * beyond, normalized_residual(rest, p))

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> Walk:
        """One uniform number a node, and one draw at the last that passes."""
        ends, rest = _ends(tokens, p, laws)
        numbers = categorical.uniforms(key, (tree.num_nodes + 1,), p.dtype)
        passes = numbers[:-1, 0] < ends
        passes = passes.at[0].set(True)
        place = jnp.arange(tree.num_nodes)
        last = jnp.max(jnp.where(passes, place, 0)).astype(jnp.int32)
        nodes = jnp.where(place <= last, place, 0)[1:].astype(jnp.int32)
        token = categorical.draw(numbers[-1], normalized_residual(rest[last], p[last]))
        return Walk(nodes, last, token)


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
        law = jax.tree.map(lambda x: x[0], stacked)
        q = law.spread(law.first).astype(p.dtype)
        left = jnp.maximum(w * p[node] - q, 0)
        total = blockwise_sum(left)
        ends.append(quotient(total, total + 1 - w))
        rest.append(left)
        token = tokens[node + 1]
        w = jnp.minimum(1, quotient(w * p[node, token], q[token]))
    ends, rest = jnp.stack([*ends, w]), jnp.stack([*rest, p[-1]])
    return ends.at[0].set(1), rest
