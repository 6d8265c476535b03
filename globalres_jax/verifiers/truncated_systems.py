"""The two truncated systems of Global Resolution as published (arXiv 2511.15898).

Each minimises a convex function over tuples of drafts, enumerated as multisets of the
likeliest tokens T and of one null symbol for all others, by L-BFGS-B:

    sum_x q(x) log(c + sum_{i in x} exp a_i) - sum_i wanted_i a_i

In the inner system c = 1: a tuple may accept nothing. In the outer one c = 0, and the
tuple of nulls alone belongs to the other system.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.transport.jaxopt_interface import known_root, minimize_in_box
from globalres_jax.verifiers.rule import first_of_each

#: Box of the log-parameters; the outer objective is flat along their common shift.
_BOX = 30.0


class Caps(NamedTuple):
    """When to stop.

    Attributes:
      tau: largest probability of the tuples left out.
      max_tuples: cap on enumerated multisets.
      maxiter: cap on L-BFGS-B iterations.
    """

    tau: float
    max_tuples: int
    maxiter: int


class System(NamedTuple):
    """A system to solve.

    Attributes:
      wanted: [k] acceptance wanted of each token.
      members: [k] bool, tokens of this system.
      null: [] draft mass of the null symbol.
      reject: [] bool, whether c is 1 (inner system) or 0 (outer system).
    """

    wanted: Array
    members: Array
    null: Array
    reject: Array


class Solved(NamedTuple):
    """A solved system.

    Attributes:
      tokens: [m] those of T, likeliest first; k where there are fewer.
      log_weights: [m] their parameters.
      accepted: [] mass of the tuples that accept a draft.
      converged: [] bool.
      iterations: [].
    """

    tokens: Array
    log_weights: Array
    accepted: Array
    converged: Array
    iterations: Array


def solve_systems(systems: System, q: Array, num_drafts: int, caps: Caps) -> Solved:
    """Solves a stack of systems, one after another by one compiled program.

    T are the fewest likeliest members that leave out at most tau.

    Args:
      systems: stacked along a leading axis.
      q: [k] draft distribution.
      num_drafts: n.
      caps: when to stop.
    """
    return jax.lax.map(lambda one: _solve(one, q, num_drafts, caps), systems)


def _solve(system: System, q: Array, num_drafts: int, caps: Caps) -> Solved:
    wanted, members, null, reject = system
    size = min(len(q), max_tokens(num_drafts, caps.max_tuples))
    mass, tokens = jax.lax.top_k(jnp.where(members, q, 0), size)
    reached = null + jnp.concatenate([jnp.zeros(1, q.dtype), jnp.cumsum(mass)])
    whole = null + jnp.sum(jnp.where(members, q, 0))
    left_out = whole**num_drafts - reached**num_drafts
    fits = left_out <= caps.tau
    count = jnp.argmax(fits)
    used = jnp.arange(size) < count
    target = jnp.where(used, wanted[tokens], 0)

    problem = _problem(jnp.where(used, mass, 0), target, null, reject, num_drafts)
    given = jax.lax.stop_gradient(problem)
    # Padding, and tokens that want nothing, stay at the floor.
    start = jnp.where(target > 0, 0, -_BOX).astype(q.dtype)
    high = jnp.where(target > 0, _BOX, -_BOX).astype(q.dtype)
    tol = 0.1 * caps.tau / math.sqrt(size)
    low = jnp.full(size, -_BOX, q.dtype)
    a, state = minimize_in_box(given.objective, start, low, high, caps.maxiter, tol)
    gradient = jnp.where(target > 0, jax.grad(given.objective)(a), 0)
    solved = jnp.sum(jnp.abs(gradient)) <= 2 * caps.tau
    # Between the bounds parameters move with p and q, on them they stay.
    enough = target > jnp.sqrt(jnp.finfo(q.dtype).tiny)
    moves = enough & (jnp.abs(a) < _BOX)
    a = known_root(_stationarity, a, problem, jnp.where(moves, given.wanted, 0))
    accepted = jnp.where(reject, -jnp.expm1(-problem.log_total(a)), 1)
    return Solved(
        jnp.where(used, tokens, len(q)),
        a,
        jnp.sum(problem.chance * accepted),
        jnp.any(fits) & (solved | (count == 0)),
        state.iter_num,
    )


class _Problem(NamedTuple):
    """What is minimised: a pytree.

    Attributes:
      chance: [N] of each multiset.
      wanted: [m] acceptance wanted of each token of T.
      tuples: [N, n] the multisets, of symbols 0 to m; m is the null symbol.
      counts: [N, n] bool, where a token of T stands for the first time.
      nothing: [N, 1] log c, or 0 for a tuple without tokens.
    """

    chance: Array
    wanted: Array
    tuples: Array
    counts: Array
    nothing: Array

    def log_total(self, a: Array) -> Array:
        """[N] log(c + sum of exp a_i) over the tokens of each multiset."""
        terms = jnp.where(self.counts, jnp.append(a, 0)[self.tuples], -jnp.inf)
        terms = jnp.concatenate([terms, self.nothing], axis=1)
        return jax.nn.logsumexp(terms, axis=1)

    def objective(self, a: Array) -> Array:
        """Of the parameters a [m]: []."""
        inside = jnp.where(self.chance > 0, self.chance * self.log_total(a), 0)
        wanted = jnp.where(self.wanted > 0, self.wanted * a, 0)
        return jnp.sum(inside) - jnp.sum(wanted)


def _problem(
    mass: Array, wanted: Array, null: Array, reject: Array, num_drafts: int
) -> _Problem:
    """The problem for tokens of draft mass [m] that want `wanted [m]`."""
    size = len(mass)
    tuples, orders = multisets(size + 1, num_drafts)
    tuples = jnp.asarray(tuples)
    symbol = jnp.append(mass, null)
    chance = jnp.asarray(orders, mass.dtype) * jnp.prod(symbol[tuples], axis=1)
    # The last multiset is that of nulls alone.
    chance = chance.at[-1].multiply(jnp.where(reject, 1, 0).astype(mass.dtype))
    counts = first_of_each(tuples) & (tuples < size)
    nothing = jnp.where(reject | ~jnp.any(counts, axis=1), 0, -jnp.inf)
    nothing = nothing.astype(mass.dtype)[:, None]
    return _Problem(chance, wanted, tuples, counts, nothing)


def _stationarity(a: Array, problem: _Problem) -> Array:
    """[m] zero at the solution, for the parameters that are not on their bounds.

    Of the outer system the Jacobian is zero along the common shift, on which no output
    depends. A little of the identity keeps the linear system solvable.
    """
    gradient = jax.grad(_Problem.objective, argnums=1)(problem, a)
    ridge = jnp.sqrt(jnp.finfo(a.dtype).eps) * problem.wanted
    return gradient + ridge * (a - jax.lax.stop_gradient(a))


def max_tokens(num_drafts: int, max_tuples: int) -> int:
    """Most tokens m with at most `max_tuples` multisets of n out of m + 1 symbols."""
    m = 1
    while m < 4096 and math.comb(m + 1 + num_drafts, num_drafts) <= max_tuples:
        m += 1
    return m


@functools.lru_cache(maxsize=32)
def multisets(num_symbols: int, num_drafts: int) -> tuple[np.ndarray, np.ndarray]:
    """All sorted tuples [N, n] of symbols, and how many orders each has [N]."""
    rows = itertools.combinations_with_replacement(range(num_symbols), num_drafts)
    tuples = np.array(list(rows), np.int32).reshape(-1, num_drafts)
    orders = np.full(len(tuples), math.factorial(num_drafts), np.float64)
    run = np.ones(len(tuples))
    for column in range(1, num_drafts):
        run = np.where(tuples[:, column] == tuples[:, column - 1], run + 1, 1)
        orders /= run
    return tuples, orders


def outer_residuals(psi: Array) -> Array:
    """What each sorted token outside H* gives up: [k] `p - wanted`.

    The polymatroid greedy along the prefixes H_j of the tokens sorted by q/p, where
    min over T containing H_j of psi(T) is a minimum over longer prefixes.

    Args:
      psi: [k + 1] p(H_j) - Q(H_j) of every prefix.
    """
    least = jax.lax.cummin(psi, reverse=True)
    return least[1:] - least[:-1]
