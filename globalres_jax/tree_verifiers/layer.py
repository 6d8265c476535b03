"""Global resolution of a whole layer of the tree: one race for all of its nodes.

Every node v of the drawn tree gets a weight w_v, the root 1, no layer more than 1. From
the weights of a layer those of the next come as one optimal transport problem, whose
slots are the pairs of a node and a token below it (`transport.layer_race`):

    t_vx = w_v p_v(x),     beta = pick law of the race,     e_vx = min(beta_vx, t_vx)
    w_vx = chance that the race picks (v, x) of what was drawn, times e_vx / beta_vx

so that e_vx is what w_vx is on average, given the layer above. What is left to each
node, R_v = w_v p_v - e_v, decides where the step ends, from the deepest layer up:

    r = sum of R over the layer,   f = 1 - sum of w
    stop here with probability r / (r + f), always at the root: (v, x) from R / r

and the path to v is emitted, then x. That is lossless for every weight of the race: the
solver decides only how much is accepted. The expected number of accepted drafts is the
sum of all e. One path is block verification, and a tree of depth 1 the optimal rule for
one position.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, TargetRows, TreeDecision, Walk
from globalres_jax.draft_laws import IID, DraftLaw
from globalres_jax.numerics import categorical
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport.layer_drafts import (
    LayerDrafts,
    SingleDrafts,
    sampled_sets,
)
from globalres_jax.transport.layer_plan import LayerSolution, solve_layer
from globalres_jax.transport.newton import ProjectedNewton
from globalres_jax.tree import SiblingGroup, TokenTree
from globalres_jax.tree_verifiers.layers import (
    Layers,
    Residuals,
    Support,
    layers,
    layout,
    root_alone,
    support,
)


class _Flow(NamedTuple):
    """Weights of a tree's layers and what they leave.

    Attributes:
      weight: [D + 1, W] w of each node.
      left: [D + 1, W] total of R.
      rest: [D, M, k] R at the tokens of each inner node's law.
      expected: [D] sum of e, the expected weight of the next layer.
    """

    weight: Array
    left: Array
    rest: Array
    expected: Array

    @property
    def stop(self) -> Array:
        """[D + 1] chance to stop at each level, if not below."""
        left = jnp.sum(self.left, axis=1)
        free = jnp.maximum(1 - jnp.sum(self.weight, axis=1), 0)
        chance = quotient(left, left + free)
        return chance.at[0].set(1)

    @property
    def residuals(self) -> Residuals:
        """R of each node: what it is away from the law's tokens is w p."""
        return Residuals(self.weight, self.rest)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerResolution:
    """One race for each layer of the tree, of independent drafts below its nodes.

    Attributes:
      maxiter: most iterations for a layer; even with none the rule is lossless.
      tol: how much less than the best a layer's race may accept.
    """

    maxiter: int = 12
    tol: float = 1e-3

    #: `walk` reads the rows of p that it needs, and no others.
    reads_rows = True

    def check(self, tree: TokenTree, laws: tuple) -> None:
        """TypeError for a level whose nodes have different laws, if not all are IID."""
        if all(isinstance(law, IID) for law in laws):
            return
        for level in range(tree.depth):
            kinds = {
                f"{law.num_drafts} by {type(law).__name__}"
                for group, law in zip(tree.groups, laws, strict=True)
                if group.level == level
            }
            if len(kinds) > 1:
                raise TypeError(
                    "law: LayerResolution needs IID drafts, or the same law and "
                    f"number of drafts at all nodes of a level that have any; level "
                    f"{level} has {' and '.join(sorted(kinds))}"
                )

    def law(
        self, tree: TokenTree, tokens: Array, p: Array, laws: tuple
    ) -> TreeDecision:
        """Chance and next token of every node where the step can end."""
        if tree.depth == 0:
            return TreeDecision(jnp.ones(1, p.dtype), p)
        held = support(tree, laws, p.dtype)
        flow = self._flow(tree, tokens, p, laws, held)
        stop = flow.stop
        missed = jnp.cumprod((1 - stop)[::-1])[::-1]
        reach = jnp.append(missed[1:], 1) * stop
        total = jnp.sum(flow.left, axis=1)
        share = flow.left * quotient(reach, total)[:, None]
        ends = share[tree.depths, layout(tree).place]
        rows = functools.partial(flow.residuals.row, tree, held, p)
        return TreeDecision(ends, jax.vmap(rows)(jnp.arange(tree.num_nodes)))

    def walk(
        self, key: Array, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Walk:
        """One number a level says where the step ends, two more say how."""
        numbers = categorical.uniforms(key, (tree.depth + 3,), p.dtype)
        if tree.depth == 0:
            return root_alone(numbers[-1], p)
        held = support(tree, laws, p.dtype)
        flow = self._flow(tree, tokens, p, laws, held)
        plan, levels = layout(tree), jnp.arange(tree.depth + 1, dtype=jnp.int32)
        level = jnp.max(jnp.where(numbers[:-2, 0] < flow.stop, levels, 0))
        place = categorical.draw(numbers[-2], flow.left[level])
        node = jnp.asarray(plan.nodes)[level, place]
        token = categorical.draw(numbers[-1], flow.residuals.row(tree, held, p, node))
        expected = jnp.sum(flow.expected)
        return Walk(jnp.asarray(plan.path)[node], level, token, expected=expected)

    def weights(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Array:
        """Weight w of every node: [N], 1 for the root.

        Of nodes that spell the same text one has the weight of all, the others 0. The
        mean of their sum over drawn trees, less the root's, is that of the drafts
        accepted.
        """
        if tree.depth == 0:
            return jnp.ones(1, p.dtype)
        held = support(tree, laws, p.dtype)
        weight = self._flow(tree, tokens, p, laws, held).weight
        return weight[tree.depths, layout(tree).place]

    def expected_accepted(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Array:
        """Expected number of accepted drafts: [].

        Of each layer given the ones above it, so that it varies less from tree to tree
        than the weights of the drafts that were drawn. Differentiable, in reverse mode.
        """
        return jnp.sum(self.expected_by_level(tree, tokens, p, laws))

    def expected_by_level(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple
    ) -> Array:
        """What each level adds to `expected_accepted`, whatever lies below it: [D]."""
        if tree.depth == 0:
            return jnp.zeros(0, p.dtype)
        held = support(tree, laws, p.dtype)
        return self._flow(tree, tokens, p, laws, held).expected

    def _flow(
        self, tree: TokenTree, tokens: Array, p: TargetRows, laws: tuple, held: Support
    ) -> _Flow:
        """Forward through the layers."""
        drafted = layers(tree, tokens, p, held)
        start = jnp.zeros(layout(tree).nodes.shape[1], p.dtype).at[0].set(1)
        if all(law.joins for law in laws):

            def descend(weight: Array, layer: Layers):
                return self._descend(layer, SingleDrafts(layer.q), weight)

            last, flow = jax.lax.scan(descend, start, drafted)
        else:
            last, levels = start, []
            for group, law in zip(tree.groups, laws, strict=True):
                layer = jax.tree.map(lambda x, at=group.level: x[at], drafted)
                last, found = self._descend_by(group, law, layer, last)
                levels.append(found)
            flow = jax.tree.map(lambda *x: jnp.stack(x), *levels)
        return flow._replace(
            weight=jnp.concatenate([flow.weight, last[None]]),
            left=jnp.concatenate([flow.left, last[None]]),
        )

    def _descend(
        self, layer: Layers, drafts: LayerDrafts, weight: Array
    ) -> tuple[Array, _Flow]:
        """Weights [W] of the next layer, and this layer's part of the flow."""
        own = weight[: len(layer.counts)]
        target = own[:, None] * layer.p
        solver = ProjectedNewton(maxiter=self.maxiter, tol=self.tol)
        one_at_most = layer.drawn.shape == (1,)
        solution = solve_layer(target, drafts, layer.counts, solver, one_at_most)
        rest = jnp.maximum(target - solution.pick, 0)
        kept = own * layer.beyond + blockwise_sum(rest)
        left = weight.at[: len(own)].set(kept)
        expected = jnp.sum(jnp.minimum(solution.pick, target))
        flow = _Flow(weight, left, rest, expected)
        return self._next(layer, target, solution), flow

    def _descend_by(
        self,
        group: SiblingGroup,
        law: DraftLaw,
        layer: Layers,
        weight: Array,
    ) -> tuple[Array, _Flow]:
        """`_descend` where all nodes of a level that have drafts have the same law."""
        most, (count, size) = layer.p.shape, (len(group.nodes), law.first.shape[-1])
        own = layer._replace(
            # Equal nodes have a sample each.
            counts=layer.counts[:count] // group.num_children,
            p=layer.p[:count, :size],
            beyond=layer.beyond[:count],
        )
        last, flow = self._descend(own, sampled_sets(law), weight)
        beyond = [(0, m - n) for m, n in zip(most, (count, size), strict=True)]
        return last, flow._replace(rest=jnp.pad(flow.rest, beyond))

    def _next(self, layer: Layers, target: Array, solution: LayerSolution) -> Array:
        """w of the next layer's nodes [W], from the drafts that were drawn."""
        at = layer.parent, layer.slot
        weight = jnp.where(layer.drawn, solution.weights[at], 0)
        total = solution.reject + jnp.sum(weight)
        # Equal drafts are one node, which has the weight of all of them.
        weight = jnp.sum(jnp.where(layer.alike, weight[None], 0), axis=1)
        target, pick = target[at], solution.pick[at]
        emitted = jnp.minimum(1, quotient(target, pick))
        return quotient(weight, total) * emitted
