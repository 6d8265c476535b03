"""Rules for trees against the bound that a linear program sets to all of them.

Only small trees can be enumerated: two paths of two tokens, each from the draft's few
likeliest tokens. The bound is that of any lossless rule for drafts drawn so, not of the
larger trees: the target is the real one, with the other tokens as one more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from drawn_trees import Contexts, last_probabilities

import globalres_jax as gr
from globalres_jax.testing import expected_length, longest_run

TREE = gr.paths(2, 2)
TOKENS = 4


def tables(pair, tokens: np.ndarray, length: int, temperature: float):
    """Tables of p and q after one text: of the draft's likeliest tokens, and the rest.

    Token j of a row is the draft's j-th likeliest there; the last is all others, which
    are not drafted.

    Args:
      pair: the target and the draft.
      tokens: [P] the text, padded.
      length: of the text.
      temperature: of both models.
    """
    # All texts of both levels at once: at first those of the second are of no use.
    texts = np.tile(np.append(tokens, 0), (TOKENS + 1, 1))
    lengths = np.array([length, *[length + 1] * TOKENS])
    for _ in range(2):
        rows = [
            last_probabilities(model, texts, lengths, temperature) for model in pair
        ]
        held = np.argsort(-rows[1], axis=1)[:, :TOKENS]
        texts[1:, length] = held[0]
    p, q = (np.take_along_axis(row, held, axis=1) for row in rows)
    p = np.append(p, np.maximum(1 - p.sum(1, keepdims=True), 0), axis=1)
    q = np.append(q / q.sum(1, keepdims=True), np.zeros((TOKENS + 1, 1)), axis=1)
    # Nothing lies below what is not drafted, and no draft below the last level.
    any_row = np.full(((TOKENS + 1) ** 2, TOKENS + 1), 1 / (TOKENS + 1))
    p, q = ([x[:1], np.append(x[1:], any_row[:1], axis=0), any_row] for x in (p, q))
    return p, q


def small_trees(pair, found: Contexts, rules: dict, args) -> list[dict]:
    """Exact mean of accepted drafts of each rule, and the bound, over contexts."""
    make = jax.jit(jax.vmap(lambda q: gr.IID(q, 2)))
    single = jax.jit(jax.vmap(lambda q: gr.IID(q, 1)))
    served = [name for name in args.rules if name != "block"]
    rules = {name: rules[name] for name in served}
    lengths = {name: [] for name in [*rules, "bound"]}
    for tokens, length in zip(*found, strict=True):
        if len(lengths["bound"]) == args.bound:
            break
        p, q = tables(pair, tokens, length, args.temp[-1])
        p, q = ([jnp.asarray(x, jnp.float32) for x in rows] for rows in (p, q))

        def draft(level, num_drafts, q=q):
            return (single if num_drafts == 1 else make)(q[level])

        for name, rule in rules.items():
            lengths[name].append(float(expected_length(rule, TREE, p, draft)))
        lengths["bound"].append(longest_run(TREE, p, draft))
    bound = np.asarray(lengths["bound"])
    return [
        {
            "rule": name,
            "trees": len(mine),
            "accepted": float(np.mean(mine)),
            "standard_error": float(np.std(mine) / np.sqrt(len(mine))),
            **share_of(np.asarray(mine), bound),
        }
        for name, mine in lengths.items()
    ]


def share_of(mine: np.ndarray, bound: np.ndarray) -> dict[str, float]:
    """The quotient of two means over the same contexts, and its standard error."""
    share = mine.mean() / bound.mean()
    error = (mine - share * bound).std() / (bound.mean() * np.sqrt(len(bound)))
    return {"of_the_bound": float(share), "its_standard_error": float(error)}


def print_bound(rows: list[dict]) -> None:
    """A line for each rule."""
    print(
        f"\nTwo paths of two tokens from the draft's {TOKENS} likeliest, exact, "
        f"{rows[0]['trees']} contexts:\n"
    )
    print("| rule | drafts accepted | of the bound |")
    print("|---|---|---|")
    for row in rows:
        print(
            f"| {row['rule']} | {row['accepted']:.3f} +- {row['standard_error']:.3f} "
            f"| {100 * row['of_the_bound']:.2f} +- "
            f"{100 * row['its_standard_error']:.2f} % |"
        )
