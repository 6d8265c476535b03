"""How often each rule accepts under each draft law, on given distributions.

What the `acceptance` command and the benchmarks share. Rates are exact where a rule
has a closed form for the law, else means over drawn drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, DraftLaw
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.draft_laws import WithoutReplacement
from globalres_jax.transport.plan import optimal_acceptance_rate
from globalres_jax.verifiers import BY_NAME as RULES
from globalres_jax.verifiers import GlobalResolution, SingleDraft
from globalres_jax.verifiers.rule import Rule, take_drafted

#: Draws a position for rules whose acceptance rate has no closed form.
SAMPLES = 256
#: Most tokens of drafts without replacement, three and more, that are solved.
CLOCKS_SUPPORT = 256

#: `(q [V], num_drafts, max_support) -> law`.
MakeLaw = Callable[[Array, int, int | None], DraftLaw]


def compare_laws(
    p: Array,
    q: Array,
    num_drafts: int,
    max_support: int | None,
    laws: Sequence[str],
) -> tuple[dict[str, dict], float]:
    """Optimum and rules of every law, and what the best law per position reaches.

    Args:
      p: [rows, V] target distributions.
      q: [rows, V] draft distributions.
      num_drafts: n; the single-draft rule always has one.
      max_support: most tokens of a row of `q` above zero, if known.
      laws: names of draft laws. A position where fewer than n tokens can be drafted
        counts with the drafts there are.

    Returns:
      For each law a dict of `optimum`, `rules` and `not_measured`, see `compare_rules`;
      the mean over positions of the largest optimum.
    """
    optima, best = mean_optima(p, q, num_drafts, laws, max_support)
    measured = {}
    for name in laws:
        rules = compare_rules(p, q, LAWS[name], num_drafts, max_support)
        measured[name] = {"optimum": optima[name], **rules}
    return measured, best


def mean_optima(
    p: Array,
    q: Array,
    num_drafts: int,
    laws: Sequence[str],
    max_support: int | None = None,
) -> tuple[dict[str, float], float]:
    """Mean optimum of each law, and of the best law at each position.

    The optimum costs one sort, so that a decoder could choose the law by it. For the
    arguments see `compare_laws`.
    """
    rows = {
        name: _by_rows(
            lambda p, q, law=LAWS[name]: optimal_acceptance_rate(
                p, law(q, num_drafts, max_support)
            ),
            p,
            q,
        )
        for name in laws
    }
    best = np.max(list(rows.values()), axis=0)
    return {name: float(np.mean(r)) for name, r in rows.items()}, float(np.mean(best))


def compare_rules(
    p: Array, q: Array, make_law: MakeLaw, num_drafts: int, max_support: int | None
) -> dict[str, dict]:
    """The rate of every rule, or the reason why it has none.

    Args:
      p: [rows, V] target distributions.
      q: [rows, V] draft distributions.
      make_law: a law of `draft_laws`.
      num_drafts: n; the single-draft rule always has one.
      max_support: most tokens of a row of `q` above zero, if known.

    Returns:
      A dict of `rules`, with `acceptance_rate` and, if it was sampled,
      `standard_error` of each; and `not_measured`, with a reason for each other one.
    """
    rules, not_measured = {}, {}
    for name, make_rule in RULES.items():
        rule = make_rule()
        count = 1 if isinstance(rule, SingleDraft) else num_drafts
        try:
            # Which rules serve a law does not depend on its probabilities.
            rule.check(make_law(jnp.full(q.shape[1], 1 / q.shape[1]), count, None))
        except (TypeError, ValueError) as error:
            not_measured[name] = str(error).partition(": ")[2]
            continue
        support = min(max_support or q.shape[1], q.shape[1])
        by_clocks = make_law is WithoutReplacement and count > 2
        if (
            isinstance(rule, GlobalResolution)
            and by_clocks
            and support > CLOCKS_SUPPORT
        ):
            not_measured[name] = (
                f"three and more drafts without replacement are solved on up to "
                f"{CLOCKS_SUPPORT} tokens, got {support} (see --top-k)"
            )
            continue
        rules[name] = rule_rate(
            rule, p, q, lambda row, n=count: make_law(row, n, max_support)
        )
    return {"rules": rules, "not_measured": not_measured}


def rule_rate(
    rule: Rule, p: Array, q: Array, make_law: Callable[[Array], DraftLaw]
) -> dict[str, float]:
    """Mean acceptance rate of a rule over the rows, exact where it can be.

    Args:
      rule: serves the law.
      p: [rows, V] target distributions.
      q: [rows, V] draft distributions.
      make_law: `q [V] -> law`.

    Returns:
      A dict of `acceptance_rate` and, if it was sampled, its `standard_error`.
    """
    if rule.has_acceptance_rate(jax.eval_shape(make_law, q[0])):
        rates = _by_rows(lambda p, q: rule.acceptance_rate(p, make_law(q)), p, q)
        return {"acceptance_rate": float(rates.mean())}

    def sampled(p: Array, q: Array, key: Array) -> tuple[Array, Array]:
        law = make_law(q)
        plan = rule.prepare(p, law)

        def accepted(key: Array) -> Array:
            drafts = law.sample(key)
            decision = rule.resolve(plan, p, law, drafts)
            # A residual token that was drafted counts as accepted, too.
            again, _ = take_drafted(decision.residual, drafts)
            return jnp.sum(decision.accept) + jnp.sum(again)

        rates = jax.lax.map(accepted, jax.random.split(key, SAMPLES))
        return jnp.mean(rates), jnp.var(rates) / SAMPLES

    keys = jax.random.split(jax.random.key(0), len(p))
    mean, variance = _by_rows(sampled, p, q, keys)
    error = np.sqrt(np.mean(variance) / len(p))
    return {"acceptance_rate": float(mean.mean()), "standard_error": float(error)}


def _by_rows(function: Callable, *rows: Array):
    """`function` of each row, one row after another, by one compiled program."""
    found = jax.jit(lambda rows: jax.lax.map(lambda row: function(*row), rows))(rows)
    return jax.tree.map(np.asarray, found)
