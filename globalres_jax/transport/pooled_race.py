"""How a large i.i.d. race is solved in a few passes: some hundred pools and one curve.

What share of a token's drafts is picked depends on its own weight alone,

    beta_i = q_i F(a_i),    F(a) = n int exp(-t) phi(t)^(n-1) e^a exp(-t e^a) dt
                                 = n E[w / (1 + w + S)],   S the others' weights,

and F increases. So at the optimum a_i = min(F^-1(p_i / q_i), A): all tokens lie on one
increasing curve of p/q. Pools of similar tokens (`pools`) find it, and one pass over
the vocabulary reads every weight off it (`weight_curve`) and integrates the exact pick
law.

What the pools and their few quadrature nodes got wrong is a smooth factor kappa between
the true F and theirs. Another round solves the pools for p / kappa, and so on, until
the certificate, which is taken over all tokens, is content.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.transport.iid_race import (
    IIDRace,
    iid_race,
    node_scale,
    pick_and_fall,
)
from globalres_jax.transport.jaxopt_interface import OptStep
from globalres_jax.transport.newton import start_weights
from globalres_jax.transport.pools import Pools, log_ratio, pool_by_ratio
from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND, LOG_WEIGHT_FLOOR
from globalres_jax.transport.race import acceptance_gap, race_weights
from globalres_jax.transport.weight_curve import (
    POINTS,
    WeightCurve,
    invert,
    read,
    safe_log,
    tabulate,
)

#: Two rounds are the rule; more than six never helped.
_MAX_ROUNDS = 6
#: A round that leaves more than this part of the gap was the last.
_WORTHWHILE = 0.5


class PoolSolver(Protocol):
    """What the rounds ask of a solver.

    Attributes:
      maxiter: largest number of iterations, of all rounds together.
      enough: the gap over all tokens at which rounds end.
    """

    maxiter: int

    @property
    def enough(self) -> float: ...

    def run(self, init_params: Array, race: IIDRace) -> OptStep:
        """Log-weights from `init_params`, and a state with `iter_num`."""
        ...


class PooledSolution(NamedTuple):
    """Log-weights on a curve, and what they achieve.

    Attributes:
      log_weights: [k].
      pick: [k] beta.
      gap: [] how far from optimal.
    """

    log_weights: Array
    pick: Array
    gap: Array


class _Rounds(NamedTuple):
    """Carry of the rounds.

    Attributes:
      pooled: [m] log-weights of the pools.
      kappa_at_pools: [m] log kappa at each pool's weight.
      kappa: [256] log kappa at the curve's points.
      best: what the best round found.
      previous_gap: [] the best gap before the last round.
      rounds: [].
      iterations: [] of the solver, in all rounds.
    """

    pooled: Array
    kappa_at_pools: Array
    kappa: Array
    best: PooledSolution
    previous_gap: Array
    rounds: Array
    iterations: Array


def solve_pooled(race: IIDRace, solver: PoolSolver) -> tuple[PooledSolution, Array]:
    """Solves an i.i.d. race on its pools and reads all weights off their curve.

    Args:
      race: the race of all tokens.
      solver: of the pools.

    Returns:
      A `PooledSolution`, and the number of the solver's iterations [].
    """
    pools = pool_by_ratio(race.p, race.q, race.num_drafts)
    ratio = log_ratio(race.p, race.q)
    as_it_is, members = _race_of_pools(race, pools, jnp.ones_like(pools.p))

    def again(carry: _Rounds) -> Array:
        improved = carry.best.gap <= _WORTHWHILE * carry.previous_gap
        unfinished = (carry.best.gap > solver.enough) & improved
        spent = (carry.rounds >= _MAX_ROUNDS) | (carry.iterations >= solver.maxiter)
        return unfinished & ~spent

    nothing = jnp.zeros_like(race.p)
    infinite = jnp.full_like(race.excess, jnp.inf)
    zero = jnp.zeros((), jnp.int32)
    start = _Rounds(
        pooled=start_weights(as_it_is, members),
        kappa_at_pools=jnp.zeros_like(pools.p),
        kappa=jnp.zeros(len(POINTS), race.p.dtype),
        best=PooledSolution(nothing, nothing, infinite),
        previous_gap=infinite,
        rounds=zero,
        iterations=zero,
    )
    one_round = partial(_one_round, race, pools, ratio, as_it_is, solver)
    end = jax.lax.while_loop(again, one_round, start)
    return end.best, end.iterations


def _race_of_pools(race: IIDRace, pools: Pools, factor: Array) -> tuple[IIDRace, Array]:
    """The race of the pools with p times `factor [m]`, and its H* [m] bool."""
    return iid_race(pools.p * factor, pools.q, race.num_drafts, race.missing)


def _one_round(
    race: IIDRace,
    pools: Pools,
    ratio: Array,
    as_it_is: IIDRace,
    solver: PoolSolver,
    carry: _Rounds,
) -> _Rounds:
    """Pools for p / kappa, their curve, all weights, the certificate, a new kappa."""
    own, n = len(pools.own), race.num_drafts
    # 1. Solve the pools.
    wanted = jax.lax.cond(
        carry.rounds > 0,
        lambda: _race_of_pools(race, pools, jnp.exp(-carry.kappa_at_pools))[0],
        lambda: as_it_is,
    )
    pooled, state = solver.run(carry.pooled, wanted)

    # 2. Their curve, times kappa, gives every token its weight; a token that is a pool
    #    of its own has that of the pool.
    weights = race_weights(wanted, pooled)
    coarse_pick, coarse_fall = pick_and_fall(wanted, weights, "coarse")
    share, slope = tabulate(node_scale(n, coarse_fall, "coarse"), "coarse")
    log_weights = invert(WeightCurve(share + carry.kappa, slope), ratio)
    log_weights = log_weights.at[pools.own].set(pooled[:own])
    log_weights = jnp.clip(log_weights, LOG_WEIGHT_FLOOR, LOG_WEIGHT_BOUND)

    # 3. The exact pick law of all tokens certifies them.
    pick, fall = pick_and_fall(race, race_weights(race, log_weights))
    gap = acceptance_gap(race, log_weights, pick)
    found = PooledSolution(log_weights, pick, gap)
    better = gap < carry.best.gap
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, carry.best)

    # 4. Kappa: the true curve over the pools' own.
    kappa = tabulate(node_scale(n, fall, "fine"), "fine").height - share
    at_pools = read(kappa, pooled)
    alone = safe_log(pick[pools.own]) - safe_log(coarse_pick[:own])
    return _Rounds(
        pooled=pooled,
        kappa_at_pools=at_pools.at[:own].set(alone),
        kappa=kappa,
        best=best,
        previous_gap=carry.best.gap,
        rounds=carry.rounds + 1,
        iterations=carry.iterations + state.iter_num,
    )
