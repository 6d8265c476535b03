"""All that can happen at one position, and its optimum by a linear program."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import NO_TOKEN, Array, Decision, Verifier
from globalres_jax.draft_laws import DraftLaw
from globalres_jax.validation import as_distribution

_LARGEST_ENUMERATION = 2_000_000


class Enumeration(NamedTuple):
    """All that can happen at one position.

    Attributes:
      drafts: [N, n] every tuple of drafts.
      probability: [N] of drawing it.
      emitted: [N, V] law of the emitted token, given the tuple.
      accepted: [N] probability that this token is among the drafts.
    """

    drafts: Array
    probability: Array
    emitted: Array
    accepted: Array

    @property
    def output_law(self) -> Array:
        """[V] law of the emitted token."""
        return jnp.sum(self.probability[:, None] * self.emitted, axis=0)

    @property
    def acceptance_rate(self) -> Array:
        """[] probability that the emitted token is among the drafts."""
        return jnp.sum(self.probability * self.accepted)


def enumerate_outcomes(verifier: Verifier, p: Array, law: DraftLaw) -> Enumeration:
    """Runs the rule on every tuple of drafts that the law can produce.

    One compiled program serves every p and law of the same shapes.

    Args:
      verifier: the rule, any `Verifier`.
      p: [V] target distribution.
      law: draft law, see `draft_tuples`.
    """
    return _outcomes(verifier, as_distribution("p", p), law)


@functools.partial(jax.jit, static_argnames="verifier")
def _outcomes(verifier: Verifier, p: Array, law: DraftLaw) -> Enumeration:
    return enumerate_decisions(lambda tokens: verifier.decide(p, law, tokens), law)


def enumerate_decisions(
    decide: Callable[[Array], Decision], law: DraftLaw
) -> Enumeration:
    """`enumerate_outcomes` of any function from drafts [n] to a `Decision`."""
    drafts = draft_tuples(law)

    def outcome(tokens: Array) -> tuple[Array, Array]:
        decision = decide(tokens)
        # A negative index would count from the end.
        place = jnp.where(tokens >= 0, tokens, law.vocab_size)
        emitted = decision.residual.at[place].add(decision.accept, mode="drop")
        missed = emitted.at[place].set(0, mode="drop")
        return emitted, jnp.sum(emitted - missed)

    emitted, accepted = jax.vmap(outcome)(drafts)
    return Enumeration(drafts, _probabilities(law, drafts), emitted, accepted)


def draft_tuples(law: DraftLaw) -> Array:
    """[N, n] all tuples of drafts.

    Where the number of drafts is data, slots are `law.max_drafts`, and those that are
    not in use hold `NO_TOKEN`, at any place; so do the last slots of a law that may
    lack tokens.

    Raises:
      ValueError: there are more than two million.
    """
    slots, tokens = law.num_drafts, range(law.vocab_size)
    if not isinstance(slots, int | np.integer):
        slots, tokens = law.max_drafts, range(NO_TOKEN, law.vocab_size)
    if len(tokens) ** slots > _LARGEST_ENUMERATION:
        raise ValueError(f"law: {len(tokens)}^{slots} tuples are too many to enumerate")
    tuples = _tuples(tuple(tokens), int(slots))
    if law.may_lack:
        fewer = [_tuples(tuple(tokens), m) for m in range(1, slots)]
        lacking = [
            np.pad(rows, ((0, 0), (0, slots - rows.shape[1])), constant_values=NO_TOKEN)
            for rows in fewer
        ]
        tuples = np.concatenate([tuples, *lacking])
    return jnp.asarray(tuples)


@functools.lru_cache(maxsize=32)
def _tuples(tokens: tuple[int, ...], slots: int) -> np.ndarray:
    """[N, slots] int32, in the order of counting."""
    grid = np.meshgrid(*[np.array(tokens, np.int32)] * slots, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, slots)


def _probabilities(law: DraftLaw, drafts: Array) -> Array:
    """[N] of each of `drafts [N, n]`; the places of unused slots are alike likely."""
    if isinstance(law.num_drafts, int | np.integer):
        return jax.vmap(law.draft_probability)(drafts)
    # A number that is data is one of independent draws.
    used = drafts >= 0
    each = jax.vmap(lambda tokens: law.lookup(law.first, tokens))(drafts)
    chance = jnp.prod(jnp.where(used, each, 1), axis=1)
    places = np.array([math.comb(used.shape[1], n) for n in range(used.shape[1] + 1)])
    share = 1 / jnp.asarray(places, chance.dtype)[law.num_drafts]
    return jnp.where(jnp.sum(used, axis=1) == law.num_drafts, chance * share, 0)


_jitted_probabilities = jax.jit(_probabilities)


def output_law(verifier: Verifier, p: Array, law: DraftLaw) -> Array:
    """Exact law of the emitted token: [V]. Lossless means that it equals p."""
    return enumerate_outcomes(verifier, p, law).output_law


def acceptance_rate(verifier: Verifier, p: Array, law: DraftLaw) -> Array:
    """Exact probability that the emitted token is among the drafts: []."""
    return enumerate_outcomes(verifier, p, law).acceptance_rate


def linear_program(p: Array, law: DraftLaw) -> float:
    """Optimum of the optimal transport linear program, by scipy's HiGHS.

    Variables S(x, y), the mass of drafting the set of tokens x and emitting y in x:
    maximise sum S subject to sum_y S(x, y) <= Pr[x] and sum_x S(x, y) <= p(y).
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    p = np.asarray(p, np.float64)
    drafts = draft_tuples(law)
    probability = np.asarray(_jitted_probabilities(law, drafts), np.float64)
    mass: dict[tuple[int, ...], float] = {}
    for row, chance in zip(np.asarray(drafts).tolist(), probability, strict=True):
        if chance > 0:
            key = tuple(sorted(set(row) - {NO_TOKEN}))
            mass[key] = mass.get(key, 0.0) + chance
    rows, columns = [], []
    bounds = [*mass.values(), *p]
    for row, drafts in enumerate(mass):
        for token in drafts:
            column = len(columns) // 2
            rows += [row, len(mass) + token]
            columns += [column, column]
    shape = (len(bounds), len(columns) // 2)
    constraints = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
    solution = linprog(
        -np.ones(shape[1]), A_ub=constraints.tocsr(), b_ub=bounds, method="highs"
    )
    return float(-solution.fun)
