"""The race: exponential weights on the drafts, and the law of what they pick.

Token i gets weight w_i, a reject slot weight 1, and slot j is picked with probability
w[x_j] / (1 + sum_k w[x_k]). With log(1 + S) = int exp(-t) (1 - exp(-t S)) / t dt all
expectations over the drafts become one-dimensional integrals of the draft law's
Laplace functional L; for n i.i.d. drafts L(t w) = phi(t)^n with
phi(t) = sum_i q_i exp(-t w_i), and

    Phi(a)     = int exp(-t) (1 - phi^n) / t dt - p.a,       w = exp(a)
    beta_i     = n int exp(-t) phi^(n-1) q_i w_i exp(-t w_i) dt   (pick law)
    d Phi/d a  = beta - p

Draft mass that the arrays given here lack, `1 - sum(q)`, has weight zero: it stays in
phi, which is why phi is formed as 1 - sum_i q_i (1 - exp(-t w_i)). See Khisti et al.,
arXiv 2410.18234, for the decomposition, and Thomas & Pal, arXiv 2511.15898, for the
convex problem.
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.numerics.powers import power_of_rest
from globalres_jax.numerics.sums import blockwise_sum, product

#: Upper bound A of the log-weights. A token at the bound beats every other one; the
#: acceptance given up is about exp(-(A - largest inner log-weight)).
LOG_WEIGHT_BOUND = 24.0
#: Log-weight that stands for weight zero where an optimizer needs a finite number.
LOG_WEIGHT_FLOOR = -80.0

#: Step, margin below -A and upper end of the quadratures in s = log t.
_GRIDS = {"fine": (0.55, 11.0, 3.0), "coarse": (0.65, 10.0, 2.7)}
_FLOAT64_GRID = (0.3, 17.0, 3.7)
#: Larger vocabularies are integrated this many tokens at a time.
_BLOCK = 8192
_CHUNK = 1024


class RaceProblem(NamedTuple):
    """One transport problem on the tokens that can be drafted.

    Attributes:
      p: [V] target probabilities of these tokens (may sum to less than 1).
      q: [V] draft probabilities of these tokens.
      num_drafts: [] number of i.i.d. drafts, in the dtype of `p`.
      excess: [] Q(H*) - p(H*), so that no rule accepts more than 1 - excess.
      missing: [] 1 - sum(p), target probability that no draft can serve.
    """

    p: Array
    q: Array
    num_drafts: Array
    excess: Array
    missing: Array


def quadrature(dtype, grid: str = "fine") -> tuple[np.ndarray, np.ndarray]:
    """Nodes t [S], descending, and weights: `sum_s weights f(t) ~ int exp(-t) f(t) dt`.

    The trapezoid rule in s = log t. Every integrand here is analytic in the strip
    |Im s| < pi/2; for the narrowest, x exp(-x) with x = t w, step h errs by
    2 |Gamma(1 + 2 pi i / h)|: 3e-7 at 0.55, 4e-6 at 0.65, 3e-13 at 0.3.
    Below the last node integrands fall like exp(s); that geometric tail is folded into
    the last weight, with an error of order n^2 exp(-2 margin) for a margin below -A.

    Args:
      dtype: float32 or float64.
      grid: "fine" for what decides the output law; "coarse" for a solver's iterations,
        to a gap of 3e-6 in float32.
    """
    step, margin, top = _GRIDS[grid] if dtype == jnp.float32 else _FLOAT64_GRID
    nodes = np.exp(np.arange(-(LOG_WEIGHT_BOUND + margin), top, step))[::-1]
    weights = step * nodes * np.exp(-nodes)
    weights[-1] /= 1 - np.exp(-step)
    return nodes.astype(dtype), weights.astype(dtype)


def race_weights(problem: RaceProblem, log_weights: Array) -> Array:
    """W = exp(a), and zero for tokens that the target never emits: [V]."""
    return jnp.where(problem.p > 0, jnp.exp(log_weights), 0)


def survival(q: Array, weights: Array, nodes: Array) -> tuple[Array, Array]:
    """exp(-t w) [S, V], and 1 - phi [S] from small numbers."""
    survive = jnp.exp(-nodes[:, None] * weights[None, :])
    # Longer products lose digits; blockwise sums cost a CPU twice as much.
    starts = range(0, len(q), _CHUNK)
    chunks = [slice(start, start + _CHUNK) for start in starts]
    return survive, sum(product(1 - survive[:, c], q[c]) for c in chunks)


@singledispatch
def pick_law(problem: RaceProblem, weights: Array) -> Array:
    """Beta [V]: the probability that each token is picked, for `weights [V]`."""
    return pick_and_fall(problem, weights)[0]


def pick_and_fall(
    problem: RaceProblem, weights: Array, grid: str = "fine"
) -> tuple[Array, Array]:
    """The pick law beta [V] of i.i.d. drafts; 1 - phi [S] at the nodes of a grid."""
    n = problem.num_drafts
    nodes, measure = quadrature(weights.dtype, grid)
    if len(weights) <= _BLOCK:
        survive, fallen = survival(problem.q, weights, nodes)
        scale = n * measure * power_of_rest(fallen, n - 1)
        return problem.q * weights * product(scale, survive), fallen

    # In blocks: [S, V] numbers would be written and read, and may not fit.
    padding = -len(weights) % _BLOCK
    blocks = jnp.pad(weights, (0, padding)).reshape(-1, _BLOCK)
    q_blocks = jnp.pad(problem.q, (0, padding)).reshape(-1, _BLOCK)
    falls = jax.lax.map(lambda block: survival(*block, nodes)[1], (q_blocks, blocks))
    fallen = blockwise_sum(falls.T)
    scale = n * measure * power_of_rest(fallen, n - 1)
    shares = jax.lax.map(
        lambda block: product(scale, jnp.exp(-nodes[:, None] * block[None])), blocks
    )
    return problem.q * weights * shares.reshape(-1)[: len(weights)], fallen


@jax.custom_jvp
def as_pick_law(pick: Array, problem: RaceProblem, weights: Array) -> Array:
    """`pick [V]`, known to be `pick_law(problem, weights)`, with its derivatives."""
    del problem, weights
    return pick


@as_pick_law.defjvp
def _(primals, tangents):
    _, tangent = jax.jvp(pick_law, primals[1:], tangents[1:])
    return primals[0], tangent


@singledispatch
def optimal_excess(problem: RaceProblem, log_weights: Array) -> Array:
    """Largest Q(H) - p(H) known, given log-weights near the optimum: []."""
    del log_weights
    return problem.excess


def rejection_rate(p: Array, pick: Array, missing: Array) -> Array:
    """1 - sum_i min(beta_i, p_i) from small numbers: [].

    Args:
      p: [V] target probabilities.
      pick: [V] beta.
      missing: [] 1 - sum(p).
    """
    return blockwise_sum(jnp.maximum(p - pick, 0)) + missing


@singledispatch
def dual_objective(problem: RaceProblem, log_weights: Array) -> Array:
    """Phi(a) of the race dual; its gradient is `pick_law - p`."""
    nodes, measure = quadrature(log_weights.dtype)
    eps = jnp.finfo(log_weights.dtype).eps
    # 1 - phi^n without cancellation where phi is close to 1.
    fall = -jnp.expm1(-nodes[:, None] * jnp.exp(log_weights)[None, :])
    fallen = blockwise_sum(fall * problem.q[None, :])
    survived = problem.num_drafts * jnp.log1p(-jnp.minimum(fallen, 1 - eps))
    integral = jnp.sum(measure / nodes * -jnp.expm1(survived))
    return integral - jnp.sum(jnp.where(problem.p > 0, problem.p * log_weights, 0))
