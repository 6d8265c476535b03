"""Many unknowns as one curve: how large i.i.d. races are solved in a few passes.

What share of a token's drafts is picked depends on its own weight alone,

    beta_i = q_i F(a_i),    F(a) = n int exp(-t) phi(t)^(n-1) e^a exp(-t e^a) dt
                                 = n E[w / (1 + w + S)],   S the others' weights,

and F increases. So at the optimum a_i = min(F^-1(p_i / q_i), A): all tokens lie on one
increasing curve of p/q. Some hundred pools of similar tokens find it, and one pass over
the vocabulary reads every weight off it and integrates the exact pick law.

What the pools and their few quadrature nodes got wrong is a smooth factor kappa between
the true F and theirs. Another round solves the pools for p / kappa, and so on, until
the certificate, which is taken over all tokens, is content.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.transport.newton import acceptance_gap, start_weights
from globalres_jax.transport.pools import log_ratio, pool_by_ratio
from globalres_jax.transport.iid_race import (
    LOG_WEIGHT_BOUND,
    LOG_WEIGHT_FLOOR,
    RaceProblem,
    pick_and_fall,
    quadrature,
    race_weights,
)
from globalres_jax.transport.subset_selection import optimal_threshold
from globalres_jax.numerics.powers import power_of_rest
from globalres_jax.numerics.sums import product

_MAX_ROUNDS = 6
#: A round that leaves more than this part of the gap was the last.
_WORTHWHILE = 0.5
#: Log-weights at which F is tabulated. Below them it is proportional to e^a.
_TABLE = np.linspace(-20, LOG_WEIGHT_BOUND, 256)
#: Python numbers: NumPy's own would make float32 arrays float64 where JAX allows that.
_LEAST = float(_TABLE[0])
_SPACING = float(_TABLE[1] - _TABLE[0])
_BLOCK = 16
#: Slopes at both ends and width of a cell to its cubic; two more are passed on.
_HERMITE = np.asarray(
    [
        [1, 1, -2, 0, 0],
        [-2, -1, 3, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
)
_TINY = 1e-30


class CurveSolution(NamedTuple):
    """Log-weights on a curve, and what they achieve.

    Attributes:
      log_weights: [V].
      pick: [V] beta.
      gap: [] how far from optimal.
    """

    log_weights: Array
    pick: Array
    gap: Array


class _Rounds(NamedTuple):
    """Carry of the rounds: the pools' weights [m] and kappa there and on the table."""

    pooled: Array
    kappa: tuple[Array, Array]
    best: CurveSolution
    previous_gap: Array
    rounds: Array
    iterations: Array


def solve_on_curve(problem: RaceProblem, solver) -> tuple[CurveSolution, Array]:
    """Solves an i.i.d. race on its pools and reads all weights off their curve.

    Args:
      problem: the race of all tokens.
      solver: of the pools; rounds go on until the gap is at most its `enough`.

    Returns:
      A `CurveSolution`, and the number of the solver's iterations [].
    """
    pools = pool_by_ratio(problem.p, problem.q, problem.num_drafts)
    ratio = log_ratio(problem.p, problem.q)
    own = len(pools.own)
    n, missing = problem.num_drafts, problem.missing

    def pooled_problem(factor: Array) -> tuple[RaceProblem, Array]:
        p = pools.p * factor
        excess, members = optimal_threshold(p, pools.q, n, missing)
        return RaceProblem(p, pools.q, n, excess, missing), members

    as_it_is, members = pooled_problem(jnp.ones_like(pools.p))

    def again(carry: _Rounds) -> Array:
        improved = carry.best.gap <= _WORTHWHILE * carry.previous_gap
        unfinished = (carry.best.gap > solver.enough) & improved
        spent = (carry.rounds >= _MAX_ROUNDS) | (carry.iterations >= solver.maxiter)
        return unfinished & ~spent

    def one_round(carry: _Rounds) -> _Rounds:
        at_pools, on_table = carry.kappa
        wanted = jax.lax.cond(
            carry.rounds > 0,
            lambda: pooled_problem(jnp.exp(-at_pools))[0],
            lambda: as_it_is,
        )
        pooled, state = solver.run(carry.pooled, wanted)
        weights = race_weights(wanted, pooled)
        coarse, coarse_fall = pick_and_fall(wanted, weights, "coarse")
        share, slope = _log_shares(n, coarse_fall, "coarse")
        log_weights = _invert(share + on_table, slope, ratio)
        log_weights = log_weights.at[pools.own].set(pooled[:own])
        log_weights = jnp.clip(log_weights, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)
        pick, fall = pick_and_fall(problem, race_weights(problem, log_weights))
        gap = acceptance_gap(problem, log_weights, pick)
        found = CurveSolution(log_weights, pick, gap)
        better = gap < carry.best.gap
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), found, carry.best
        )
        on_table = _log_shares(n, fall, "fine")[0] - share
        at_pools = _read(on_table, pooled)
        alone = _log(pick[pools.own]) - _log(coarse[:own])
        at_pools = at_pools.at[:own].set(alone)
        return _Rounds(
            pooled,
            (at_pools, on_table),
            best,
            carry.best.gap,
            carry.rounds + 1,
            carry.iterations + state.iter_num,
        )

    nothing = jnp.zeros_like(problem.p)
    infinite = jnp.full_like(problem.excess, jnp.inf)
    zero = jnp.zeros((), jnp.int32)
    start = _Rounds(
        start_weights(as_it_is, members),
        (jnp.zeros_like(pools.p), jnp.zeros(len(_TABLE), problem.p.dtype)),
        CurveSolution(nothing, nothing, infinite),
        infinite,
        zero,
        zero,
    )
    end = jax.lax.while_loop(again, one_round, start)
    return end.best, end.iterations


@functools.lru_cache
def _kernels(dtype, grid: str) -> tuple[np.ndarray, np.ndarray]:
    """e^a exp(-t e^a) and its derivative in a, at nodes and table: [S, 256] each."""
    nodes = quadrature(dtype, grid)[0].astype(np.float64)
    x = nodes[:, None] * np.exp(_TABLE)
    value = np.exp(_TABLE - x)
    return value.astype(dtype), ((1 - x) * value).astype(dtype)


def _log_shares(n: Array, fallen: Array, grid: str) -> tuple[Array, Array]:
    """Log F [256] and its slope, from 1 - phi [S] at the nodes of a grid."""
    dtype = fallen.dtype
    scale = n * quadrature(dtype, grid)[1] * power_of_rest(fallen, n - 1)
    share, rise = (product(scale, jnp.asarray(k)) for k in _kernels(dtype, grid))
    return _log(share), rise / jnp.maximum(share, _TINY)


def _invert(log_share: Array, slope: Array, ratio: Array) -> Array:
    """[V] log-weights at which the tabulated log F is `ratio [V]`.

    Cubic between the table's points, and monotone: where F is flat, between the
    tokens of H* and the others, its digits are noise, and any weight there serves.
    """
    height = jax.lax.cummax(log_share)
    low, rise = height[:-1], jnp.maximum(jnp.diff(height), 1e-9)
    steepness = 1 / jnp.maximum(slope, 1e-9)
    left, right = (
        jnp.minimum(rise * s, 3 * _SPACING) for s in (steepness[:-1], steepness[1:])
    )
    # A sum keeps XLA from forming the numbers of a cell anew for each token.
    cells = jnp.stack([left, right, jnp.full_like(low, _SPACING), low, 1 / rise])
    cells = jnp.sum(_HERMITE.astype(low.dtype)[..., None] * cells[None], axis=1)
    cell = jnp.minimum(_cell(height, ratio), len(rise) - 1)
    cubic, square, linear, low, scale = (
        row.at[cell].get(mode="promise_in_bounds") for row in cells
    )
    u = jnp.clip((ratio - low) * scale, 0, 1)
    first = _LEAST + _SPACING * cell.astype(ratio.dtype)
    weights = first + u * (linear + u * (square + u * cubic))
    weights = jnp.where(ratio < height[0], _LEAST + ratio - height[0], weights)
    return jnp.where(ratio >= height[-1], LOG_WEIGHT_BOUND, weights)


def _cell(table: Array, values: Array) -> Array:
    """[V] how many entries of the ascending `table [256]` but the first are below.

    By comparing with all of them, or, where comparing is not cheap, with every
    sixteenth and then with those in between. A binary search takes longer.
    """

    def in_two_levels(table: Array, values: Array) -> Array:
        blocks = table.reshape(_BLOCK, _BLOCK)
        block = _below(blocks[None, 1:, 0], values)
        return _BLOCK * block + _below(blocks[block, 1:], values)

    return jax.lax.platform_dependent(
        table,
        values,
        cpu=in_two_levels,
        default=lambda table, values: _below(table[None, 1:], values),
    )


def _below(table: Array, values: Array) -> Array:
    return jnp.sum(table <= values[:, None], axis=1, dtype=jnp.uint32)


def _read(table: Array, log_weights: Array) -> Array:
    """Values [m] of the `table [256]` at `log_weights [m]`, linear between points."""
    place = jnp.clip((log_weights - _LEAST) / _SPACING, 0, len(_TABLE) - 1)
    cell = jnp.minimum(place.astype(jnp.int32), len(_TABLE) - 2)
    return table[cell] + (place - cell) * (table[cell + 1] - table[cell])


def _log(values: Array) -> Array:
    return jnp.log(jnp.maximum(values, _TINY))
