"""Global Resolution as published (Thomas & Pal, arXiv 2511.15898): the baseline.

Complementary slackness splits the transport problem at the optimal subset H*: a tuple
of drafts that reaches outside H* always accepts one of its outer tokens (outer
system), a tuple inside H* accepts one of its own or none (inner system). Each is a
convex problem over tuples, truncated to the fewest tokens T that leave out at most
tau, and minimised by L-BFGS-B. Within caps on tuples and iterations; past them it
fails, and says so. Lossless up to an L1 error of 15 tau, optimal up to 10 tau.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID
from globalres_jax.draft_laws.law import ratio_order
from globalres_jax.transforms import normalized_residual
from globalres_jax.transport.subset_selection import optimal_prefix
from globalres_jax.verifiers.rule import Rule

#: Box of the log-parameters; the outer objective is flat along their common shift.
_BOX = 30.0


class TruncatedPlan(NamedTuple):
    """Solution of the outer and the inner system.

    Attributes:
      outside: [V] bool, tokens outside H*.
      kept: [V] bool, tokens of the truncated systems.
      log_weights: [V] parameters of both systems, 0 where not kept.
      residual: [V] law of what is emitted when no draft is accepted.
      acceptance_rate: [] achieved, over the tuples that were kept.
      upper_bound: [] optimal acceptance rate.
      converged: [] bool; False where the method fails.
      iterations: [] of both minimisations together.
    """

    outside: Array
    kept: Array
    log_weights: Array
    residual: Array
    acceptance_rate: Array
    upper_bound: Array
    converged: Array
    iterations: Array


class _System(NamedTuple):
    """A truncated system: tokens [m], their log-parameters, how it went."""

    tokens: Array
    log_weights: Array
    accepted: Array
    converged: Array
    iterations: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedGlobalResolution(Rule):
    """The paper's own solver and rule.

    A plan that failed decides by target sampling (draw y from p, accept it if it was
    drafted), which is exactly lossless.

    Attributes:
      tau: largest probability of the tuples left out of either system.
      max_tuples: cap on enumerated multisets; with n, it caps the tokens kept.
      maxiter: cap on L-BFGS-B iterations of each system.
    """

    tau: float = 1e-3
    max_tuples: int = 20_000
    maxiter: int = 200

    serves = (IID,)
    serves_trees = False

    def check(self, law: IID) -> None:
        """Raises TypeError for another law, ValueError if n is not a Python int."""
        super().check(law)
        if not isinstance(law.num_drafts, int | np.integer):
            raise ValueError(
                "num_drafts: TruncatedGlobalResolution enumerates tuples and needs a "
                f"Python int, got {law.num_drafts!r}"
            )

    def prepare(self, p: Array, law: IID) -> TruncatedPlan:
        """Solves both systems."""
        self.check(law)
        return _plan(self, p, law)

    def resolve(
        self, plan: TruncatedPlan, p: Array, law: IID, draft_tokens: Array
    ) -> Decision:
        """Decision from the system that the drafts belong to."""
        used = draft_tokens >= 0
        outside = plan.outside[draft_tokens] & used
        outer = jnp.any(outside)
        relevant = jnp.where(outer, outside, used)
        candidate = _first_of_each(draft_tokens) & relevant & plan.kept[draft_tokens]
        weights = jnp.where(candidate, jnp.exp(plan.log_weights[draft_tokens]), 0)
        # Outer tuples have no reject slot; those that truncation emptied reject.
        total = jnp.sum(weights) + jnp.where(outer, 0, 1)
        accept = weights / jnp.where(total > 0, total, 1)
        residual = (1 - jnp.sum(accept)) * plan.residual

        drafted = jnp.where(used, draft_tokens, p.shape[0])
        first = _first_of_each(drafted) & used
        sampled = jnp.where(first, p[draft_tokens], 0)
        rest = p.at[drafted].set(0, mode="drop")
        ok = plan.converged
        return Decision(jnp.where(ok, accept, sampled), jnp.where(ok, residual, rest))

    def acceptance_rate(self, p: Array, law: IID) -> Array:
        """Mass of the kept tuples that accept a draft; target sampling on failure."""
        plan = self.prepare(p, law)
        fallback = jnp.sum(p * -jnp.expm1(law.num_drafts * jnp.log1p(-law.probs)))
        return jnp.where(plan.converged, plan.acceptance_rate, fallback)


def max_tokens(num_drafts: int, max_tuples: int) -> int:
    """Most tokens m with at most `max_tuples` multisets of n out of m + 1 symbols."""
    m = 1
    while m < 4096 and math.comb(m + 1 + num_drafts, num_drafts) <= max_tuples:
        m += 1
    return m


@functools.lru_cache(maxsize=32)
def _multisets(num_symbols: int, num_drafts: int) -> tuple[np.ndarray, np.ndarray]:
    """All sorted tuples [N, n] of symbols, and how many orders each has [N]."""
    rows = itertools.combinations_with_replacement(range(num_symbols), num_drafts)
    tuples = np.array(list(rows), np.int32).reshape(-1, num_drafts)
    orders = np.full(len(tuples), math.factorial(num_drafts), np.float64)
    run = np.ones(len(tuples))
    for column in range(1, num_drafts):
        run = np.where(tuples[:, column] == tuples[:, column - 1], run + 1, 1)
        orders /= run
    return tuples, orders


def _first_of_each(tokens: Array) -> Array:
    """[..., n] bool: True where a token stands for the first time."""
    n = tokens.shape[-1]
    equal = tokens[..., :, None] == tokens[..., None, :]
    earlier = jnp.tril(jnp.ones((n, n), bool), k=-1)
    return ~jnp.any(equal & earlier.reshape((1,) * (equal.ndim - 2) + (n, n)), axis=-1)


def _solve_system(
    rule: TruncatedGlobalResolution,
    wanted: Array,
    q: Array,
    members: Array,
    null: Array,
    num_drafts: int,
    reject: bool,
) -> _System:
    """Minimises sum_x q(x) log(c + sum_{i in x} exp a_i) - sum_i wanted_i a_i.

    Tuples x are drawn from T, the fewest likeliest tokens that leave out at most tau,
    and a null symbol for tokens that carry no weight.

    Args:
      rule: caps and tolerance.
      wanted: [V] acceptance wanted of each token.
      q: [V] draft distribution.
      members: [V] bool, tokens of this system.
      null: [] draft mass of the null symbol.
      num_drafts: n.
      reject: c = 1, a tuple may accept nothing (inner system); else c = 0, and the
        tuple of nulls alone belongs to the other system (outer system).
    """
    size = min(wanted.shape[0], max_tokens(num_drafts, rule.max_tuples))
    mass, tokens = jax.lax.top_k(jnp.where(members, q, 0), size)
    reached = null + jnp.concatenate([jnp.zeros(1, q.dtype), jnp.cumsum(mass)])
    whole = null + jnp.sum(jnp.where(members, q, 0))
    left_out = whole**num_drafts - reached**num_drafts
    fits = left_out <= rule.tau
    count = jnp.argmax(fits)
    used = jnp.arange(size) < count
    target = jnp.where(used, wanted[tokens], 0)

    tuples, orders = _multisets(size + 1, num_drafts)
    if not reject:
        tuples, orders = tuples[:-1], orders[:-1]
    tuples = jnp.asarray(tuples)
    symbol = jnp.append(jnp.where(used, mass, 0), null)
    chance = jnp.asarray(orders, q.dtype) * jnp.prod(symbol[tuples], axis=1)
    counts = _first_of_each(tuples) & (tuples < size)

    def log_total(a: Array) -> Array:
        terms = jnp.where(counts, jnp.append(a, 0)[tuples], -jnp.inf)
        if reject:
            terms = jnp.pad(terms, ((0, 0), (0, 1)))
        return jax.nn.logsumexp(terms, axis=1)

    def objective(a: Array) -> Array:
        inside = jnp.where(chance > 0, chance * log_total(a), 0)
        return jnp.sum(inside) - jnp.sum(jnp.where(target > 0, target * a, 0))

    solver = jaxopt.LBFGSB(
        objective,
        maxiter=rule.maxiter,
        tol=0.1 * rule.tau / math.sqrt(size),
        implicit_diff=False,
        unroll=False,
    )
    # Padding, and tokens that want nothing, stay at the floor.
    start = jnp.where(target > 0, 0, -_BOX).astype(q.dtype)
    bounds = (jnp.full(size, -_BOX, q.dtype), jnp.where(target > 0, _BOX, -_BOX))
    a, state = solver.run(start, bounds=(bounds[0], bounds[1].astype(q.dtype)))
    gradient = jnp.where(target > 0, jax.grad(objective)(a), 0)
    solved = jnp.sum(jnp.abs(gradient)) <= 2 * rule.tau
    accepted = -jnp.expm1(-log_total(a)) if reject else 1
    return _System(
        jnp.where(used, tokens, wanted.shape[0]),
        a,
        jnp.sum(chance * accepted),
        jnp.any(fits) & (solved | (count == 0)),
        state.iter_num,
    )


def outer_residuals(psi: Array) -> Array:
    """What each sorted token outside H* gives up: [V] `p - wanted`.

    The polymatroid greedy along the prefixes H_j of the tokens sorted by q/p, where
    min over T containing H_j of psi(T) is a minimum over longer prefixes.

    Args:
      psi: [V + 1] p(H_j) - Q(H_j) of every prefix.
    """
    least = jax.lax.cummin(psi, reverse=True)
    return least[1:] - least[:-1]


@functools.partial(jax.jit, static_argnames="rule")
def _plan(rule: TruncatedGlobalResolution, p: Array, law: IID) -> TruncatedPlan:
    n, q, vocab_size = int(law.num_drafts), law.probs, p.shape[0]
    # 1. H* by one sort.
    order = ratio_order(p, q)
    sorted_p, sorted_q = p[order], q[order]
    prefix = optimal_prefix(sorted_p, sorted_q, n, 1 - jnp.sum(p))
    outside = jnp.zeros(vocab_size, bool).at[order].set(~prefix.members)

    # 2. What the outer tokens are to accept.
    before = jnp.zeros(1, q.dtype)
    psi = jnp.concatenate([before, jnp.cumsum(sorted_p)])
    psi = psi - jnp.concatenate([before, jnp.cumsum(sorted_q)]) ** n
    given_up = jnp.zeros_like(p).at[order].set(outer_residuals(psi))
    outer_wanted = jnp.where(outside, jnp.maximum(p - given_up, 0), 0)

    # 3. The two systems. Inside H*, tokens that p lacks are the null symbol.
    inner_members = ~outside & (p > 0)
    inside_q = jnp.sum(jnp.where(outside, 0, q))
    lacking_q = jnp.sum(jnp.where(~outside & (p == 0), q, 0))
    outer = _solve_system(rule, outer_wanted, q, outside, inside_q, n, reject=False)
    inner = _solve_system(rule, p, q, inner_members, lacking_q, n, reject=True)

    empty = jnp.zeros(vocab_size, bool)
    kept = empty.at[outer.tokens].set(True, mode="drop")
    kept = kept.at[inner.tokens].set(True, mode="drop")
    log_weights = jnp.zeros_like(p)
    log_weights = log_weights.at[outer.tokens].set(outer.log_weights, mode="drop")
    log_weights = log_weights.at[inner.tokens].set(inner.log_weights, mode="drop")
    rest = jnp.where(outside, jnp.maximum(p - outer_wanted, 0), 0)
    return TruncatedPlan(
        outside=outside,
        kept=kept,
        log_weights=log_weights,
        residual=normalized_residual(rest, p),
        acceptance_rate=outer.accepted + inner.accepted,
        upper_bound=1 - prefix.excess,
        converged=outer.converged & inner.converged,
        iterations=outer.iterations + inner.iterations,
    )
