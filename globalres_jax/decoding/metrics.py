"""What decoding counts, per row, in the words of vLLM's metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Walk
from globalres_jax.tree import TokenTree


class Metrics(NamedTuple):
    """Counts of one request (leaves [B] or [B, ...]) and the rates they give.

    Attributes:
      num_spec_steps: [B] target calls, those without drafts to verify included.
      num_draft_tokens: [B] drafted tokens, all nodes of all trees.
      num_accepted_draft_tokens: [B] drafted tokens that the walks accepted (a stop
        or the length cap may cut some of them off the text).
      acceptance_histogram: [B, D + 1] steps by number of accepted tokens.
      reached_per_position: [B, D] steps whose walk reached this depth.
      optimum_sum: [B] sum of the optimal acceptance rates at the nodes reached; NaN
        where nobody computed them (see `SpeculativeConfig.measure_optimum`).
      expected_sum: [B] sum over steps of the number of accepted tokens that the rule
        expected, given the drafts; NaN where it does not say. `LayerResolution` does.
    """

    num_spec_steps: Array
    num_draft_tokens: Array
    num_accepted_draft_tokens: Array
    acceptance_histogram: Array
    reached_per_position: Array
    optimum_sum: Array
    expected_sum: Array

    @property
    def mean_acceptance_length(self) -> Array:
        """[B] emitted tokens per target call, bonus included (block efficiency)."""
        steps = jnp.maximum(self.num_spec_steps, 1)
        return 1 + self.num_accepted_draft_tokens / steps

    @property
    def draft_acceptance_rate(self) -> Array:
        """[B] accepted over drafted tokens."""
        drafted = jnp.maximum(self.num_draft_tokens, 1)
        return self.num_accepted_draft_tokens / drafted

    @property
    def per_position_acceptance_rate(self) -> Array:
        """[B, D] share of all steps that accepted the token at each depth."""
        tail = jnp.cumsum(self.acceptance_histogram[:, ::-1], axis=1)[:, ::-1]
        return tail[:, 1:] / jnp.maximum(self.num_spec_steps, 1)[:, None]

    @property
    def acceptance_rate(self) -> Array:
        """[B] share of verified positions at which a drafted token was emitted."""
        reached = jnp.sum(self.reached_per_position, axis=1)
        return self.num_accepted_draft_tokens / jnp.maximum(reached, 1)

    @property
    def optimal_acceptance_rate(self) -> Array:
        """[B] mean optimum at those same positions; the best any rule could expect.

        NaN where it was not computed.
        """
        reached = jnp.sum(self.reached_per_position, axis=1)
        return self.optimum_sum / jnp.maximum(reached, 1)

    @property
    def expected_acceptance_length(self) -> Array:
        """[B] what the rule expected of `mean_acceptance_length`: with less noise.

        NaN where it does not say.
        """
        return 1 + self.expected_sum / jnp.maximum(self.num_spec_steps, 1)


#: What `described` gives.
_NAMES = (
    "mean_acceptance_length",
    "expected_acceptance_length",
    "acceptance_rate",
    "optimal_acceptance_rate",
    "draft_acceptance_rate",
    "per_position_acceptance_rate",
    "acceptance_histogram",
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
)


@jax.jit
def described(metrics: Metrics) -> dict[str, Array]:
    """Counts and rates by name, each [B] or [B, ...]: one program for all of them."""
    return {name: getattr(metrics, name) for name in _NAMES}


def plain_numbers(metrics: Metrics) -> dict[str, float | list[float] | None]:
    """Counts and rates of one request (leaves [1] or [1, ...]), as JSON has them.

    What nobody computed is None: JSON has no NaN.
    """
    # Sums over very many requests are wider than what a device counts.
    wide = any(np.asarray(x).dtype.itemsize == 8 for x in metrics)
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        found = {name: np.asarray(x)[0] for name, x in described(metrics).items()}
    return {
        name: None if x.ndim == 0 and np.isnan(x) else x.tolist()
        for name, x in found.items()
    }


def total(counts: Iterable[Metrics]) -> Metrics | None:
    """The sum of the counts of requests, leaves [1] or [1, ...]; None for none."""
    summed = None
    for one in counts:
        one = jax.tree.map(_widened, one)
        summed = one if summed is None else jax.tree.map(np.add, summed, one)
    return summed


def _widened(x: Array) -> np.ndarray:
    """On the host, with room for sums over all of a day's requests."""
    x = np.asarray(x)
    return x.astype(np.float64 if x.dtype.kind == "f" else np.int64)


def empty_metrics(batch: int, depth: int) -> Metrics:
    """All counts zero."""
    zeros = jnp.zeros(batch, jnp.int32)
    return Metrics(
        zeros,
        zeros,
        zeros,
        jnp.zeros((batch, depth + 1), jnp.int32),
        jnp.zeros((batch, depth), jnp.int32),
        jnp.zeros(batch, jnp.float32),
        jnp.zeros(batch, jnp.float32),
    )


def count_step(
    metrics: Metrics,
    tree: TokenTree,
    running: Array,
    drafted: Array | None,
    walk: Walk,
    optimum: Array,
) -> Metrics:
    """Adds one step of the rows that are `running [B]`.

    Args:
      metrics: counts so far.
      tree: shape of the tree that was drafted for each row.
      running: [B] bool.
      drafted: [B] bool, whether it was; None where it always is.
      walk: of each row, leaves [B, ...].
      optimum: [B, D] optimal acceptance rates at the nodes reached, NaN for not known.
    """
    one = running.astype(jnp.int32)
    with_drafts = running if drafted is None else running & drafted
    length, depth = walk.accept_length, tree.depth
    root = jnp.zeros((len(one), 1), walk.nodes.dtype)
    visited = jnp.concatenate([root, walk.nodes], axis=1)[:, :depth]
    has_drafts = jnp.asarray(tree.num_children > 0)[visited]
    index = jnp.arange(depth + 1)[None, :]
    reached = (index[:, :depth] <= length[:, None]) & has_drafts
    reached = reached & with_drafts[:, None]
    ended_here = (index == length[:, None]) & running[:, None]
    return Metrics(
        metrics.num_spec_steps + one,
        metrics.num_draft_tokens + with_drafts * (tree.num_nodes - 1),
        metrics.num_accepted_draft_tokens + one * length,
        metrics.acceptance_histogram + ended_here,
        metrics.reached_per_position + reached,
        metrics.optimum_sum
        + jnp.sum(jnp.where(reached, optimum, 0), axis=1).astype(jnp.float32),
        metrics.expected_sum
        + jnp.where(with_drafts, walk.expected, 0).astype(jnp.float32),
    )
