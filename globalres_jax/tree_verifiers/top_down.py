"""Verification from the root down, by any single-position rule.

At each node of the walk the drafts below it are a sample of a known law, given the
text accepted so far, so a single-position rule applies. Its token is emitted; where it
is among the drafts the walk goes on from there, else the step ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import (
    Array,
    Decision,
    TargetRows,
    TreeDecision,
    Verifier,
    Walk,
)
from globalres_jax.numerics import categorical
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.rows import by_platform, map_rows
from globalres_jax.numerics.sums import product
from globalres_jax.transforms import normalized_residual
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers.junctions import (
    Junctions,
    junctions,
    kind_of,
    law_to_check,
    representative,
)
from globalres_jax.tree_verifiers.layers import root_alone


class _Drafted(NamedTuple):
    """A drafted tree of one row: tokens [N], rows of p [N, V], equal nodes [N, N]."""

    tree: TokenTree
    tokens: Array
    p: TargetRows
    same: Array


class _Place(NamedTuple):
    """A walk that has come to a node, or has ended there.

    Attributes:
      level: [] depth of `node`.
      node: [].
      token: [] the token emitted last; of no meaning at the root.
      ended: [] bool.
      path: [D] node at each depth from 1 on, 0 beyond.
      optimum: [D] of what the rule says at each node visited, 0 beyond.
    """

    level: Array
    node: Array
    token: Array
    ended: Array
    path: Array
    optimum: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopDown:
    """A single-position rule, node after node from the root.

    Lossless for every rule that is (SpecTr, arXiv 2310.15141).

    Attributes:
      verifier: the rule.
      ahead: whether all nodes are planned together before the walk, or each when the
        walk comes to it. The outcome is the same. None: together on an accelerator,
        which idles otherwise; on a CPU, where work is time, only what is walked.
    """

    verifier: Verifier
    ahead: bool | None = None

    #: `walk` reads the rows of p that it needs, and no others.
    reads_rows = True

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """Raises TypeError or ValueError if the rule does not serve a level's law."""
        for law in laws:
            self.verifier.check(law_to_check(tree, law))

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Walk:
        """Walks the tree, one draw a level: tokens [N], p [N, V]."""
        in_turn = functools.partial(self._walk, tree, False)
        together = functools.partial(self._walk, tree, True)
        if self.ahead is not None:
            return (together if self.ahead else in_turn)(key, tokens, p, laws)
        return by_platform(key, tokens, p, laws, cpu=in_turn, default=together)

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """Chance and next token of every place where the walk can end."""
        drafted = _Drafted(tree, tokens, p, tree.same_prefix(tokens))
        # Leaves draw from p, and nothing goes on from them.
        goes_on = jnp.zeros((tree.num_nodes, tree.num_nodes), p.dtype)
        stays, following = jnp.ones(tree.num_nodes, p.dtype), p
        for alike in junctions(tree, drafted.same, laws):
            nodes = alike.nodes
            plans = map_rows(self.verifier.prepare, p[nodes], alike.laws)
            outcomes = functools.partial(self._outcomes, drafted, alike)
            children, chance, left = jax.vmap(outcomes)(jnp.asarray(nodes), plans)
            goes_on = goes_on.at[nodes[:, None], children].add(chance)
            total = jnp.sum(left, axis=1)
            stays = stays.at[nodes].set(total)
            left = quotient(left, total[:, None])
            following = following.at[nodes].set(left)
        root = jnp.zeros(tree.num_nodes, p.dtype).at[0].set(1)
        reach = root
        for _ in range(tree.depth):
            reach = root + product(reach, goes_on)
        return TreeDecision(reach * stays, following)

    def _walk(
        self,
        tree: TokenTree,
        ahead: bool,
        key: Array,
        tokens: Array,
        p: TargetRows,
        laws: tuple,
    ) -> Walk:
        """The walk as one loop, whose body decides at one node of any kind."""
        drafted = _Drafted(tree, tokens, p, tree.same_prefix(tokens))
        kinds = junctions(tree, drafted.same, laws)
        # A number for the draft that is accepted, if any, and one for the residual.
        numbers = categorical.uniforms(key, (tree.depth + 1, 2), p.dtype)

        def end(numbers: Array, node: Array) -> tuple[Array, Array, Array]:
            return categorical.draw(numbers[1], p[node]), _int(0), _zero(p)

        if not kinds:
            return root_alone(numbers[0, 1], p)
        ways = [end]
        for alike in kinds:
            plans = map_rows(self._plan, p[alike.nodes], alike.laws) if ahead else None
            ways.append(functools.partial(self._descend, drafted, alike, plans))
        kind = jnp.asarray(kind_of(tree, kinds))

        def descend(at: _Place) -> _Place:
            token, child, best = jax.lax.switch(
                kind[at.node], ways, numbers[at.level], at.node
            )
            return _Place(
                level=at.level + 1,
                node=child,
                token=token,
                ended=child == 0,
                path=at.path.at[at.level].set(child, mode="drop"),
                optimum=at.optimum.at[at.level].set(best, mode="drop"),
            )

        start = _Place(
            _int(0),
            _int(0),
            _int(0),
            jnp.zeros((), bool),
            jnp.zeros(tree.depth, jnp.int32),
            jnp.zeros(tree.depth, p.dtype),
        )
        at = jax.lax.while_loop(lambda at: ~at.ended, descend, start)
        return Walk(at.path, jnp.sum(at.path > 0), at.token, at.optimum)

    def _plan(self, p: Array, law) -> tuple[Any, Array]:
        """The rule's plan, and the optimum that it knows of: [], NaN for none."""
        plan = self.verifier.prepare(p, law)
        known = getattr(self.verifier, "optimum", None)
        none = jnp.full((), jnp.nan, p.dtype)
        return plan, none if known is None else known(plan).astype(p.dtype)

    def _descend(
        self, drafted: _Drafted, alike: Junctions, plans, numbers: Array, node: Array
    ) -> tuple[Array, Array, Array]:
        """The token emitted after `node []`, the child it leads to, and the optimum."""
        tree, tokens, p, same = drafted
        row, law = p[node], alike.law(node)
        if plans is None:
            plan, best = self._plan(row, law)
        else:
            place = jnp.asarray(alike.places)[node]
            plan, best = jax.tree.map(lambda x: x[place], plans)
        drafts = alike.drafts(tree, tokens, same, node)

        def decide() -> Decision:
            return self.verifier.resolve(plan, row, law, drafts.tokens)

        token = draw(numbers, decide, drafts.tokens, row)
        chosen = representative(tree, drafts, token)
        child = jnp.sum(jnp.where(chosen, drafts.nodes, 0)).astype(jnp.int32)
        return token, child, best

    def _outcomes(
        self, drafted: _Drafted, alike: Junctions, node: Array, plan
    ) -> tuple[Array, Array, Array]:
        """Drafts below a node [n], the chance to go on through each [n], the rest [V].

        Tokens that stand in several slots go on through their representative.
        """
        tree, tokens, p, same = drafted
        drafts = alike.drafts(tree, tokens, same, node)
        decision = self.verifier.resolve(plan, p[node], alike.law(node), drafts.tokens)
        tokens = drafts.tokens
        slots = jnp.where(tokens >= 0, tokens, p.shape[-1])
        emitted = decision.residual.at[slots].add(decision.accept, mode="drop")
        leads = jax.vmap(lambda token: representative(tree, drafts, token))(tokens)
        leads = jnp.diagonal(leads) & (tokens >= 0)
        chance = jnp.where(leads, emitted[tokens], 0)
        return drafts.nodes, chance, emitted.at[slots].set(0, mode="drop")


def draw(
    numbers: Array, decide: Callable[[], Decision], draft_tokens: Array, p: Array
) -> Array:
    """Samples the emitted token of the `Decision` that `decide()` makes: [] int32.

    A residual over the vocabulary is formed only where no draft is accepted. Rounding
    may lead to one that is empty; `p [V]` is then a safe thing to sample.

    Args:
      numbers: [2, UNIFORMS] uniform.
      decide: makes the decision.
      draft_tokens: [n].
      p: [V] target distribution.
    """
    accept = decide().accept
    rejected = jnp.maximum(1 - jnp.sum(accept, keepdims=True), 0)
    slot = categorical.draw(numbers[0], jnp.concatenate([accept, rejected]))
    num_slots = draft_tokens.shape[0]

    def from_residual() -> Array:
        return categorical.draw(numbers[1], normalized_residual(decide().residual, p))

    return jax.lax.cond(
        slot < num_slots,
        lambda: draft_tokens[jnp.minimum(slot, num_slots - 1)],
        from_residual,
    )


def _int(value: int) -> Array:
    return jnp.asarray(value, jnp.int32)


def _zero(p: TargetRows) -> Array:
    return jnp.zeros((), p.dtype)
