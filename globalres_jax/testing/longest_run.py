"""The longest run that a lossless rule can accept of a tree, by a linear program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from globalres_jax.base import Array
from globalres_jax.testing.steps import drawn_trees
from globalres_jax.tree import TokenTree


def longest_run(
    tree: TokenTree,
    target: Sequence[Array],
    draft: Callable[[int, int], object],
) -> float:
    """Most drafts that a step can accept on average, whatever lossless rule verifies.

    The rule may look at all of the tree, and at the target after every text. Variables
    f(T, v), the chance that tree T was drawn and that what is accepted of it begins
    with its text v: maximise the sum of all f but the root's, subject to

        f(T, root) = Pr[T],    sum_x f(T, vx) <= f(T, v),
        sum_T f(T, vx) <= p(x | v) sum_T f(T, v).

    Trees of the same texts are one. By scipy's HiGHS.

    Args:
      tree: shape, of depth D.
      target: for each d below D the table [V^d, V] of p; more are not looked at.
      draft: see `step_law`.

    Raises:
      RuntimeError: the solver gives up.
    """
    size = target[0].shape[-1]
    variables = _variables(tree, size, draft)
    columns = {name: column for column, name in enumerate(variables)}
    entries, bounds = [], []

    def bound(plus: list[int], minus: list[int], factor: float) -> None:
        """The sum over `plus` is at most `factor` times that over `minus`."""
        entries.extend((len(bounds), column, 1.0) for column in plus)
        entries.extend((len(bounds), column, -factor) for column in minus)
        bounds.append(0.0)

    within, across, of_text = defaultdict(list), defaultdict(list), defaultdict(list)
    for (drawn, depth, text), column in columns.items():
        of_text[depth, text].append(column)
        if depth > 0:
            within[drawn, depth - 1, text // size].append(column)
            across[depth, text].append(column)
    for parent, children in within.items():
        bound(children, [columns[parent]], 1.0)
    for (depth, text), same in across.items():
        row, token = divmod(text, size)
        bound(same, of_text[depth - 1, row], float(target[depth - 1][row][token]))

    is_root = np.asarray([depth == 0 for _, depth, _ in variables])
    chance = np.asarray(list(variables.values()))
    return _largest_sum(entries, bounds, is_root, chance)


def _largest_sum(
    entries: list[tuple], bounds: list[float], is_root: np.ndarray, chance: np.ndarray
) -> float:
    """Of all variables but the roots', by HiGHS; RuntimeError where it gives up."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    row, column, value = map(np.asarray, zip(*entries, strict=True))
    shape = (len(bounds), len(chance))
    # Chances far apart can stop one of the methods, though nothing accepted is always
    # a solution.
    for method in ("highs", "highs-ipm", "highs-ds"):
        solution = linprog(
            np.where(is_root, 0.0, -1.0),
            A_ub=coo_matrix((value, (row, column)), shape=shape).tocsr(),
            b_ub=bounds,
            bounds=np.stack([np.where(is_root, chance, 0), chance], axis=1),
            method=method,
        )
        if solution.fun is not None:
            return float(-solution.fun)
    raise RuntimeError(f"the linear program was not solved: {solution.message}")


def _variables(tree: TokenTree, size: int, draft) -> dict[tuple, float]:
    """Pr[T] for each (T, depth, text), T the number of a set of texts."""
    texts, chance = map(np.asarray, drawn_trees(tree, size, draft))
    of_set = defaultdict(float)
    for text, one in zip(texts.tolist(), chance.tolist(), strict=True):
        if one > 0:
            of_set[frozenset(zip(tree.depths.tolist(), text, strict=True))] += one
    return {
        (number, depth, text): one
        for number, (drawn, one) in enumerate(of_set.items())
        for depth, text in sorted(drawn)
    }
