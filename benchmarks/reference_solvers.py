"""Exact solvers of the transport problem over sets of drafts, to compare with.

The linear program (scipy's HiGHS) and the maximum flow (OR-tools; capacities scaled to
integers), whole or split by complementary slackness. All three enumerate the sets that
n drafts can form, which is what makes them slow. Nothing here imports JAX, so that a
solver can run in a process of its own and be stopped.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time

import numpy as np

#: Flow capacities are multiples of this.
_UNIT = 1e-12


def draft_sets(q: np.ndarray, n: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Sets of distinct tokens that n i.i.d. drafts can form, with probabilities."""
    mass: dict[tuple[int, ...], float] = {}
    tokens = np.flatnonzero(q > 0).tolist()
    if n == 2:  # the only size at which large vocabularies can be enumerated at all
        left, right = np.triu_indices(len(tokens), 1)
        names = np.array(tokens)
        pairs = list(zip(names[left].tolist(), names[right].tolist(), strict=True))
        weights = 2 * q[names[left]] * q[names[right]]
        singles = [(token,) for token in tokens]
        return singles + pairs, np.concatenate([q[names] ** 2, weights])
    factorial = math.factorial(n)
    for row in itertools.combinations_with_replacement(tokens, n):
        distinct = tuple(sorted(set(row)))
        orders = factorial
        for token in distinct:
            orders //= math.factorial(row.count(token))
        chance = orders * float(np.prod(q[list(row)]))
        mass[distinct] = mass.get(distinct, 0.0) + chance
    return list(mass), np.array(list(mass.values()))


def _edges(sets: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.fromiter(map(len, sets), np.int64, len(sets))
    tokens = np.fromiter(itertools.chain.from_iterable(sets), np.int64, sizes.sum())
    return np.repeat(np.arange(len(sets)), sizes), tokens


def linear_program(p: np.ndarray, q: np.ndarray, n: int) -> float:
    """Optimal acceptance rate by HiGHS."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    sets, mass = draft_sets(q, n)
    rows, tokens = _edges(sets)
    columns = np.arange(len(rows))
    matrix = coo_matrix(
        (
            np.ones(2 * len(rows)),
            (
                np.concatenate([rows, len(sets) + tokens]),
                np.concatenate([columns, columns]),
            ),
        ),
        shape=(len(sets) + len(p), len(rows)),
    )
    bounds = np.concatenate([mass, p])
    result = linprog(-np.ones(len(rows)), A_ub=matrix.tocsr(), b_ub=bounds)
    return float(-result.fun)


def _flow(sets: list, mass: np.ndarray, p: np.ndarray, allowed: np.ndarray) -> float:
    from ortools.graph.python import max_flow

    rows, tokens = _edges(sets)
    keep = allowed[tokens]
    rows, tokens = rows[keep], tokens[keep]
    source, sink = len(sets) + len(p), len(sets) + len(p) + 1
    tail = np.concatenate(
        [np.full(len(sets), source), rows, len(sets) + np.arange(len(p))]
    )
    head = np.concatenate(
        [np.arange(len(sets)), len(sets) + tokens, np.full(len(p), sink)]
    )
    supply = np.floor(mass / _UNIT).astype(np.int64)
    demand = np.floor(p / _UNIT).astype(np.int64)
    capacity = np.concatenate([supply, supply[rows], demand])
    graph = max_flow.SimpleMaxFlow()
    graph.add_arcs_with_capacity(tail.astype(np.int32), head.astype(np.int32), capacity)
    if graph.solve(source, sink) != graph.OPTIMAL:
        raise RuntimeError("the maximum flow was not found")
    return graph.optimal_flow() * _UNIT


def max_flow(p: np.ndarray, q: np.ndarray, n: int) -> float:
    """Optimal acceptance rate as a maximum flow from draft sets to tokens."""
    sets, mass = draft_sets(q, n)
    return _flow(sets, mass, p, np.ones(len(p), bool))


def restricted_max_flow(p: np.ndarray, q: np.ndarray, n: int) -> float:
    """Two smaller flows: sets that reach outside H* to outer tokens, others inside."""
    order = np.argsort(-q / np.maximum(p, 1e-300), kind="stable")
    psi = np.concatenate([[0], np.cumsum(p[order]) - np.cumsum(q[order]) ** n])
    inner = np.zeros(len(p), bool)
    inner[order[: psi.argmin()]] = True
    sets, mass = draft_sets(q, n)
    inside = np.array([all(inner[list(drafts)]) for drafts in sets])
    total = 0.0
    for chosen, allowed in ((inside, inner), (~inside, ~inner)):
        rows = np.flatnonzero(chosen)
        if len(rows):
            total += _flow([sets[i] for i in rows], mass[rows], p, allowed)
    return total


SOLVERS = {
    "LP": linear_program,
    "max-flow": max_flow,
    "restricted max-flow": restricted_max_flow,
}


def _work(pipe, name: str, problems: list, n: int, budget: float) -> None:
    SOLVERS[name](np.array([0.5, 0.5]), np.array([0.5, 0.5]), 2)  # imports
    pipe.send(None)
    begin = time.perf_counter()
    for p, q in problems:
        start = time.perf_counter()
        value = SOLVERS[name](p, q, n)
        pipe.send((time.perf_counter() - start, value))
        if time.perf_counter() - begin > budget:
            break


def run_limited(
    name: str, problems: list, n: int, limit: float, budget: float
) -> list[tuple[float, float]]:
    """(seconds, value) of problems solved within `limit` seconds each.

    Stops at the first problem that takes longer, or when `budget` seconds are spent.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(there, name, problems, n, budget))
    worker.start()
    there.close()
    outcomes = []
    try:
        if here.poll(60):
            here.recv()
            while len(outcomes) < len(problems) and here.poll(limit):
                outcomes.append(here.recv())
    except EOFError:
        pass
    worker.kill()
    worker.join()
    return outcomes
