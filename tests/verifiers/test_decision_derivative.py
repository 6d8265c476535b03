"""The derivative of what each rule decides, against finite differences in float64."""

import derivative_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivative_cases import V
from rule_cases import EXACT, served

import globalres_jax as gr
from globalres_jax import verifiers

UNLIKE = np.random.default_rng(3).normal(size=(9, V + 2))
LAWS = {
    "iid": lambda q: gr.IID(q, 2),
    "one": lambda q: gr.IID(q, 1),
    "independent": lambda q: gr.Independent(jnp.stack([q, 0.5 * (q + q[::-1])])),
    "without replacement": lambda q: gr.WithoutReplacement(q, 2),
    "top plus sample": lambda q: gr.TopPlusSample(q, 2),
    "deterministic": lambda q: gr.Deterministic(jnp.array([2, 0]), V),
}
SLOW = pytest.mark.sweep


def read_out(rules, make):
    """[rules] some function of each rule's decisions on some drafts."""

    def function(p, q):
        law, found = make(q), []
        drafts = jnp.asarray([[2, 0], [3, 4], [1, 1], [0, 2], [4, 1]])
        drafts = drafts[:, : law.num_drafts]
        if isinstance(law, gr.Deterministic):
            drafts = law.tokens[None]
        elif isinstance(law, gr.TopPlusSample):
            others = jnp.array([1, 3, 4])
            top = jnp.broadcast_to(law.top, (3, 1))
            drafts = jnp.concatenate([top, others[:, None]], axis=1)
        for rule in rules:
            plan = rule.prepare(p, law)

            def one(weights, tokens, rule=rule, plan=plan):
                accept, left = rule.resolve(plan, p, law, tokens)
                size = len(accept)
                return jnp.sum(weights[:size] * accept) + jnp.sum(weights[2:] * left)

            weights = jnp.asarray(UNLIKE[: len(drafts)])
            found.append(jnp.sum(jax.vmap(one)(weights, drafts)))
        return jnp.stack(found)

    return function


@pytest.mark.parametrize(
    "name",
    [
        # They run the same rules as others, and take longest to compile.
        pytest.param(name, marks=SLOW)
        if name in ("one", "independent", "without replacement")
        else name
        for name in LAWS
    ],
)
def test_decisions(name, float64):
    """Of all rules but the two that solve something, by one program a law."""
    make = LAWS[name]
    rules = served(make(jnp.full(V, 1 / V)))
    rules = [rule for key, rule in rules.items() if key != "global-resolution"]
    derivative_cases.check(read_out(rules, make))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param("iid", EXACT["global-resolution"], marks=SLOW),
        pytest.param("independent", EXACT["global-resolution"], marks=SLOW),
        ("top plus sample", EXACT["global-resolution"]),
        pytest.param(
            "iid",
            verifiers.TruncatedGlobalResolution(tau=1e-9, maxiter=2000),
            marks=SLOW,
        ),
    ],
)
def test_decisions_of_solvers(name, rule, float64):
    if isinstance(rule, verifiers.GlobalResolution):
        rule = verifiers.GlobalResolution(solver=gr.ProjectedNewton(tol=1e-10))
    derivative_cases.check(read_out([rule], LAWS[name]))


def test_accept_and_residual_keep_their_sum(float64):
    """At ties, too: the mean of both sides' derivatives is taken in both."""
    rule = verifiers.SingleDraft()

    def total(p, q, tokens):
        decision = rule.decide(p, gr.IID(q, 1), tokens)
        return jnp.sum(decision.accept) + jnp.sum(decision.residual)

    p = np.full(V, 1 / V)
    slope = jax.jit(jax.jacrev(total, argnums=(0, 1)))(p, p, np.array([1]))
    np.testing.assert_allclose(slope, np.zeros((2, V)), atol=1e-12)
