"""Cases for all rules and laws, in batches: nearly all the time is compilation.

Every vocabulary is padded to one size with tokens that nobody wants or drafts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from conftest import adversarial, distributions

import globalres_jax as gr
from globalres_jax import verifiers

SIZE = 5
MOST = 4
TURN = np.array([3, 0, 4, 1, 2])
LAWS = ("iid", "independent", "deterministic", "without replacement", "top plus sample")
#: Lossless up to rounding; the published method is so up to its tolerance only.
EXACT = {
    name: rule()
    for name, rule in verifiers.BY_NAME.items()
    if name != "truncated-global-resolution"
}


def padded(row) -> np.ndarray:
    return np.pad(np.asarray(row, np.float64), (0, SIZE - len(row)))


@functools.cache
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Rows p and q [C, V], of true sizes 2 to 5; the last is the one before, turned."""
    found = [*adversarial(SIZE).values(), *adversarial(3).values()]
    for size, count in ((2, 2), (3, 2), (4, 4), (5, 6)):
        found += distributions(size, seed=size, count=count)
    p, q = next(distributions(SIZE, seed=21, count=1))
    q = 0.9 * q + 0.1 * np.linspace(0.1, 0.3, SIZE)
    found += [(p, q), (p[TURN], q[TURN])]
    p, q = zip(*found, strict=True)
    return np.stack([padded(x) for x in p]), np.stack([padded(x) for x in q])


def stacked_laws(name: str, q, n, max_support: int | None = None):
    """The law `name` for each row of `q [C, V]`, stacked; `n` an int, or [C] data.

    Of rows in numpy, laws in numpy, made by one program.
    """
    if not isinstance(q, np.ndarray):
        return _stacked(name, q, n, max_support)
    make = jax.jit(lambda q: _stacked(name, q, n, max_support))
    return jax.tree.map(np.asarray, make(q))


def _stacked(name: str, q, n, max_support: int | None):
    rng = np.random.default_rng(0)
    q = jnp.asarray(q)
    if name == "iid":
        make = lambda q, n: gr.IID(q, n, max_support, max_drafts=MOST)  # noqa: E731
        static = isinstance(n, int)
        return jax.vmap(make, (0, None if static else 0))(q, n)
    if name == "independent":
        others = rng.dirichlet(np.full(SIZE, 0.7), (len(q), n - 1))
        others = others.reshape(len(q), n - 1, SIZE).astype(q.dtype)
        rows = jnp.concatenate([q[:, None], others], axis=1)
        # Of all cases the first two have drafters that are the target.
        rows = rows.at[:2].set(q[:2, None])
        return jax.vmap(lambda rows: gr.Independent(rows, max_support))(rows)
    if name == "deterministic":
        tokens = np.stack([rng.permutation(SIZE)[:n] for _ in range(len(q))])
        return jax.vmap(lambda x: gr.Deterministic(x, SIZE))(jnp.asarray(tokens))
    make = {
        "without replacement": gr.WithoutReplacement,
        "top plus sample": gr.TopPlusSample,
    }[name]
    return jax.vmap(lambda q: make(q, n, max_support))(q)


def fewer(cases: "Batch", step: int) -> "Batch":
    """Every `step`-th case, where each takes seconds."""
    laws = jax.tree.map(lambda x: x[::step], cases.laws)
    return Batch(cases.p[::step], laws, cases.n[::step])


def one(laws, i: int):
    """The i-th law of a stack."""
    # A number in numpy would be a number of drafts that fixes shapes.
    return jax.tree.map(lambda x: x[i] if x.ndim > 1 else jnp.asarray(x[i]), laws)


def serves(rule, law) -> bool:
    try:
        rule.check(law)
    except (TypeError, ValueError):
        return False
    return True


def served(law, rules=EXACT) -> dict:
    """Those of `rules` that serve the law."""
    return {name: rule for name, rule in rules.items() if serves(rule, law)}


class Batch(NamedTuple):
    """Targets [C, V], their laws stacked, and the number of drafts [C]."""

    p: np.ndarray
    laws: object
    n: np.ndarray


def batch(name: str, n: int | None, dtype, max_support: int | None = None) -> Batch:
    """All pairs that have a law `name`; `n` None for i.i.d. drafts in any number."""
    p, q = (x.astype(dtype) for x in pairs())
    if n is None:
        counts = 2 + (np.arange(len(p)) + np.arange(len(p)) // 12) % (MOST - 1)
        counts[-1] = counts[-2]
        return Batch(p, stacked_laws(name, q, jnp.asarray(counts), max_support), counts)
    if name in ("without replacement", "top plus sample"):
        enough = (q > 0).sum(1) >= n
        p, q = p[enough], q[enough]
    return Batch(p, stacked_laws(name, q, n, max_support), np.full(len(p), n))


class Found(NamedTuple):
    """What a rule does: output law [C, V], acceptance rate [C], closed one or None."""

    output: np.ndarray
    rate: np.ndarray
    closed: np.ndarray | None


def enumerated(rules: dict, cases: Batch) -> dict[str, Found]:
    """What each of `rules` does, by one compiled program for all rules and cases.

    The cases run in turn: in a batch each solve would take as long as the slowest.
    """
    law = one(cases.laws, 0)

    def knows_rate(rule) -> bool:
        if isinstance(rule, verifiers.GlobalResolution):
            # The plan's own, whatever the law; here it would be solved a second time.
            return isinstance(law, gr.IID)
        return rule.has_acceptance_rate(law)

    def each(case):
        p, law = case
        found = {}
        for name, rule in rules.items():
            outcomes = gr.testing.enumerate_outcomes(rule, p, law)
            rate = rule.acceptance_rate(p, law) if knows_rate(rule) else None
            found[name] = Found(outcomes.output_law, outcomes.acceptance_rate, rate)
        return found

    run = jax.jit(lambda cases: jax.lax.map(each, cases))
    return jax.tree.map(np.asarray, run((jnp.asarray(cases.p), cases.laws)))
