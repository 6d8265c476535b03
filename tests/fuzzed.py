"""Hostile problems by the thousand, and what must hold for every one of them.

Rows with zeros, one-hots, ties, denormal numbers, ratios of 1e30, and supports with
fewer tokens than drafts; equal, disjoint and reversed pairs of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import globalres_jax as gr

SIZE = 4
#: A batch is compiled once for each law and number of drafts.
LAWS = {
    "iid": (2, 3),
    "independent": (1, 2, 3),
    "deterministic": (1, 2, 3),
    "without replacement": (1, 2, 3, 4),
    "top plus sample": (1, 2, 3),
}


def row(rng, dtype) -> np.ndarray:
    """[V] a distribution of one of the kinds."""
    least = 70 if dtype == np.float32 else 600
    kind = rng.integers(8)
    if kind == 0:
        values = rng.dirichlet(np.full(SIZE, 0.7))
    elif kind == 1:
        values = np.eye(SIZE)[rng.integers(SIZE)]
    elif kind == 2:  # zeros
        values = rng.dirichlet(np.ones(SIZE)) * (rng.uniform(size=SIZE) < 0.5)
    elif kind == 3:  # any ratios, up to 1e30 and 1e260
        values = np.exp(-rng.uniform(0, least, SIZE))
    elif kind == 4:  # one heavy token, the others equal and tiny
        values = np.full(SIZE, np.exp(-rng.uniform(0, least)))
        values[rng.integers(SIZE)] = 1
    elif kind == 5:  # ties
        values = rng.integers(1, 3, SIZE).astype(float)
    elif kind == 6:  # what processors take for zero
        values = rng.dirichlet(np.ones(SIZE))
        tiny = float(np.finfo(dtype).tiny)
        values[rng.integers(SIZE, size=2)] = tiny * rng.uniform(1e-3, 2, 2)
    else:
        values = np.exp(-np.sort(rng.uniform(0, 0.9 * least, SIZE)) * np.arange(SIZE))
        values = np.maximum(values, np.exp(-least))[rng.permutation(SIZE)]
    if values.sum() == 0:
        values[rng.integers(SIZE)] = 1
    return (values / values.sum()).astype(dtype)


class Problems(NamedTuple):
    """Targets [C, V], draft rows [C, 4, V] and different tokens [C, V]."""

    p: np.ndarray
    q: np.ndarray
    tokens: np.ndarray


def problems(count: int, seed: int, dtype) -> Problems:
    """`count` of them."""
    rng = np.random.default_rng(seed)
    p = np.stack([row(rng, dtype) for _ in range(count)])
    q = np.stack([[row(rng, dtype) for _ in range(4)] for _ in range(count)])
    # Some targets are the draft's row, or that row turned around.
    same = rng.integers(6, size=count)
    p = np.where((same == 0)[:, None], q[:, 0], p)
    p = np.where((same == 1)[:, None], q[:, 0, ::-1], p)
    tokens = np.stack([rng.permutation(SIZE) for _ in range(count)]).astype(np.int32)
    return Problems(p, q, tokens)


def law_of(name: str, n: int, q, tokens):
    """The law `name` of n drafts, for draft rows `q [4, V]`."""
    if name == "independent":
        return gr.Independent(q[:n])
    if name == "deterministic":
        return gr.Deterministic(tokens[:n], SIZE)
    make = {
        "iid": gr.IID,
        "without replacement": gr.WithoutReplacement,
        "top plus sample": gr.TopPlusSample,
    }[name]
    return make(q[0], n)


class Found(NamedTuple):
    """What a plan says and does: all [C], but for the output law [C, V]."""

    accepted: np.ndarray
    upper_bound: np.ndarray
    optimum: np.ndarray
    converged: np.ndarray
    output: np.ndarray
    enumerated: np.ndarray
    least: np.ndarray
    total_error: np.ndarray


def solved(name: str, n: int, given: Problems) -> Found:
    """Plans of all problems, and their decisions for every tuple of drafts."""
    count = len(given.p)
    # Some problems twice, so that any number of them run as one program.
    rows = np.arange(-(-count // 40) * 40) % count
    parts = [Problems(*(x[some] for x in given)) for some in rows.reshape(-1, 40)]
    parts = [jax.tree.map(np.asarray, _program(name, n)(part)) for part in parts]
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)


@functools.cache
def _program(name: str, n: int):
    def each(problem):
        p, q, tokens = problem
        law = law_of(name, n, q, tokens)
        plan = gr.solve_transport(p, law)
        drafts = gr.testing.draft_tuples(law)
        rule = gr.verifiers.GlobalResolution()
        decisions = jax.vmap(lambda x: rule.resolve(plan, p, law, x))(drafts)
        outcome = gr.testing.enumerate_decisions(
            lambda x: rule.resolve(plan, p, law, x), law
        )
        total = decisions.accept.sum(1) + decisions.residual.sum(1)
        reached = outcome.probability > 0
        entries = jnp.concatenate([decisions.accept, decisions.residual], axis=1)
        entries = jnp.where(reached[:, None], entries, 0)
        return Found(
            plan.acceptance_rate,
            plan.upper_bound,
            gr.optimal_acceptance_rate(p, law),
            plan.converged,
            outcome.output_law,
            outcome.acceptance_rate,
            jnp.min(entries),
            jnp.max(jnp.where(reached, jnp.abs(total - 1), 0)),
        )

    return jax.jit(lambda given: jax.lax.map(each, given))


def optima(name: str, n: int, given: Problems) -> np.ndarray:
    """[C] the optimum of each problem, of all subsets of the tokens."""
    values = []
    # Laws take for zero what processors do.
    tiny = np.finfo(given.q.dtype).tiny
    rows = np.where(given.q < tiny, 0, given.q).astype(np.float64)
    targets = given.p.astype(np.float64)
    for p, q, tokens in zip(targets, rows, given.tokens, strict=True):
        chance = chances(name, n, q, tokens)
        values.append(best_of(p, chance))
    return np.asarray(values)


def chances(name: str, n: int, q: np.ndarray, tokens: np.ndarray) -> dict:
    """The probability of each set of drafts, from the law's definition alone."""
    if name == "deterministic":
        return {frozenset(tokens[:n].tolist()): 1.0}
    sets = {frozenset(): 1.0}
    heaviest = np.argsort(-q[0], kind="stable")[: n - 1].tolist()
    for draft in range(n):
        following: dict = {}
        for held, chance in sets.items():
            left = q[draft if name == "independent" else 0].copy()
            if name == "without replacement":
                left[list(held)] = 0
            if name == "top plus sample":
                if draft < n - 1:
                    left[:] = 0
                    left[heaviest[draft]] = q[0][heaviest[draft]] > 0
                else:
                    left[heaviest] = 0
            total = left.sum()
            if total == 0:
                following[held] = following.get(held, 0) + chance
                continue
            for token in np.flatnonzero(left):
                new = held | {int(token)}
                share = chance * left[token] / total
                following[new] = following.get(new, 0) + share
        sets = following
    return sets


def best_of(p: np.ndarray, sets: dict) -> float:
    """min over H of p(H) + 1 - Q(H), the linear program's value (arXiv 2502.18779)."""
    values = []
    for code in range(2 ** len(p)):
        members = {i for i in range(len(p)) if code >> i & 1}
        outside = sum(chance for held, chance in sets.items() if not held <= members)
        values.append(p[sorted(members)].sum() + outside)
    return min(values)


def failures(name: str, n: int, given: Problems) -> dict[str, int]:
    """How many problems break what must hold, by name of what."""
    found, best = solved(name, n, given), optima(name, n, given)
    close = 1e-5 if given.p.dtype == np.float32 else 1e-9
    with np.errstate(invalid="ignore"):
        broken = {
            "law": ~(np.abs(found.output - given.p).max(1) <= close),
            "acceptance": ~(found.accepted <= found.enumerated + close),
            "optimum": ~(np.abs(found.optimum - found.upper_bound) <= close),
            "upper bound": ~(np.abs(found.upper_bound - best) <= close),
            "certificate": found.converged & ~(found.accepted >= best - 3e-5),
            "negative entry": ~(found.least >= 0),
            "sum": ~(found.total_error <= close),
        }
    return {what: int(np.sum(bad)) for what, bad in broken.items() if np.any(bad)}
