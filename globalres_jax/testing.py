"""Exact checks that users can run on their own rules: enumeration and an LP oracle.

For small vocabularies. Enable `jax_enable_x64` for float64 answers.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Model
from globalres_jax.cache import KVCache, init_cache
from globalres_jax.validation import as_distribution

_LARGEST_ENUMERATION = 2_000_000


class Enumeration(NamedTuple):
    """All that can happen at one position.

    Attributes:
      drafts: [N, n] every tuple of drafts.
      probability: [N] of drawing it.
      emitted: [N, V] law of the emitted token, given the tuple.
    """

    drafts: Array
    probability: Array
    emitted: Array


def enumerate_outcomes(verifier, p: Array, law) -> Enumeration:
    """Runs the rule on every tuple of drafts that the law can produce.

    Args:
      verifier: the rule; hashable, since one compilation serves all values.
      p: [V] target distribution.
      law: draft law with a static number of drafts.
    """
    p = as_distribution("p", p)
    drafts = draft_tuples(law)
    return _outcomes(verifier, p, law, drafts)


@functools.partial(jax.jit, static_argnames="verifier")
def _outcomes(verifier, p: Array, law, drafts: Array) -> Enumeration:
    decisions = jax.vmap(lambda tokens: verifier.decide(p, law, tokens))(drafts)
    emitted = jax.vmap(lambda accept, residual, x: residual.at[x].add(accept))(
        decisions.accept, decisions.residual, drafts
    )
    return Enumeration(drafts, jax.vmap(law.draft_probability)(drafts), emitted)


def draft_tuples(law) -> Array:
    """[V^n, n] all tuples of drafts."""
    tuples = law.vocab_size**law.num_drafts
    if tuples > _LARGEST_ENUMERATION:
        raise ValueError(
            f"law: {law.vocab_size}^{law.num_drafts} tuples are too many to enumerate"
        )
    grid = itertools.product(range(law.vocab_size), repeat=law.num_drafts)
    return jnp.asarray(np.array(list(grid), np.int32))


def output_law(verifier, p: Array, law) -> Array:
    """Exact law of the emitted token: [V]. Lossless means that it equals p."""
    outcomes = enumerate_outcomes(verifier, p, law)
    return outcomes.probability @ outcomes.emitted


def acceptance_rate(verifier, p: Array, law) -> Array:
    """Exact probability that the emitted token is among the drafts: []."""
    outcomes = enumerate_outcomes(verifier, p, law)
    drafted = jax.vmap(lambda x: jnp.zeros(law.vocab_size, bool).at[x].set(True))(
        outcomes.drafts
    )
    accepted = jnp.sum(jnp.where(drafted, outcomes.emitted, 0), axis=1)
    return outcomes.probability @ accepted


def linear_program(p: Array, law) -> float:
    """Optimum of the optimal transport linear program, by scipy's HiGHS.

    Variables S(x, y), the mass of drafting the set of tokens x and emitting y in x:
    maximise sum S subject to sum_y S(x, y) <= Pr[x] and sum_x S(x, y) <= p(y).
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    p = np.asarray(p, np.float64)
    drafts = draft_tuples(law)
    probability = np.asarray(jax.vmap(law.draft_probability)(drafts), np.float64)
    mass: dict[tuple[int, ...], float] = {}
    for row, chance in zip(np.asarray(drafts).tolist(), probability, strict=True):
        if chance > 0:
            key = tuple(sorted(set(row)))
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


def markov_model(transition: Array) -> Model:
    """A model whose next token depends on the last one alone.

    Args:
      transition: [V, V] rows are next-token distributions.

    Returns:
      A `Model` with a cache that only counts.
    """
    transition = jnp.asarray(transition)
    return Model(
        params=jnp.log(transition),
        apply=_markov_apply,
        init_cache=_markov_cache,
        vocab_size=transition.shape[-1],
    )


def _markov_apply(params, tokens, positions, cache: KVCache, mask):
    del positions, mask
    return params[tokens], cache._replace(length=cache.length + tokens.shape[1])


def _markov_cache(batch: int, length: int) -> KVCache:
    return init_cache(0, batch, length, 1, 1)
