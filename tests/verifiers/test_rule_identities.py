"""What must hold of rules whatever they compute: one draft, slots, n as data."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_cases
from conftest import distributions

import globalres_jax as gr
from globalres_jax import verifiers
from globalres_jax.base import NO_TOKEN

RULES = rule_cases.EXACT
#: Plans of these laws are found in ways of their own.
SOLVED = ("iid", "without replacement")


@pytest.mark.parametrize("law_name", rule_cases.LAWS)
def test_one_draft_of_any_law_accepts_the_overlap(law_name, float64):
    cases = rule_cases.fewer(rule_cases.batch(law_name, 1, np.float64), 3)
    law = rule_cases.one(cases.laws, 0)
    first = jax.jit(jax.vmap(lambda law: law.spread(law.first)))(cases.laws)
    overlap = np.minimum(cases.p, first).sum(1)
    served = rule_cases.served(law)
    assert {"single-draft", "k-seq", "global-resolution"} <= set(served)
    if law_name not in SOLVED:
        del served["global-resolution"]
    if law_name != "deterministic":
        del served["target-sample"]
    for name, found in rule_cases.enumerated(served, cases).items():
        np.testing.assert_allclose(found.output, cases.p, atol=1e-9, err_msg=name)
        atol = 1e-5 if name == "global-resolution" else 1e-9
        np.testing.assert_allclose(found.rate, overlap, atol=atol, err_msg=name)


@functools.cache
def laws_of_two():
    """Target, and two drafts of each law: `{name: (law, drafts)}`; in float64."""
    p, q = next(distributions(5, seed=9, count=1))

    @jax.jit
    def made(q, keys):
        laws = {}
        for name, key in zip(rule_cases.LAWS, keys, strict=True):
            law = rule_cases.one(rule_cases.stacked_laws(name, q[None], 2), 0)
            laws[name] = law, law.sample(key)
        return laws

    return p, made(q, jax.random.split(jax.random.key(1), len(rule_cases.LAWS)))


def with_gaps(drafts):
    """Two drafts in slots 1 and 3 of five."""
    return jnp.full(5, NO_TOKEN).at[jnp.array([1, 3])].set(drafts)


@pytest.mark.parametrize("name", [k for k in RULES if k != "single-draft"])
def test_unused_slots_anywhere_change_nothing(name, float64):
    rule = RULES[name]
    p, laws = laws_of_two()

    @jax.jit
    def both(p, law, drafts):
        plan = rule.prepare(p, law)
        loose = rule.resolve(plan, p, law, with_gaps(drafts))
        return rule.resolve(plan, p, law, drafts), loose

    for law_name, (law, drafts) in laws.items():
        if not rule_cases.serves(rule, law):
            continue
        if name == "global-resolution" and law_name != "iid":
            continue
        tight, loose = both(p, law, drafts)
        np.testing.assert_allclose(
            loose.accept, [0, tight.accept[0], 0, tight.accept[1], 0], atol=1e-12
        )
        np.testing.assert_allclose(loose.residual, tight.residual, atol=1e-12)


def test_an_unused_slot_beside_a_single_draft(float64):
    p, q = (jnp.asarray(x) for x in next(distributions(5, seed=9, count=1)))
    rule, law = verifiers.SingleDraft(), gr.IID(q, 1)
    decide = jax.jit(rule.decide)
    alone = decide(p, law, jnp.array([2]))
    loose = decide(p, law, jnp.array([NO_TOKEN, 2, NO_TOKEN]))
    np.testing.assert_allclose(loose.accept, [0, alone.accept[0], 0])
    np.testing.assert_allclose(loose.residual, alone.residual)


@pytest.mark.parametrize("name", ["khisti", "k-seq"])
def test_a_number_of_drafts_that_is_data_decides_as_an_int(name, float64):
    rule, most = RULES[name], 3
    p, q = next(distributions(5, seed=4, count=1))
    drafts = np.array([4, 0, 2])
    decide = jax.jit(lambda n, x: rule.decide(p, gr.IID(q, most).joined(n, most), x))
    for n in (1, most):
        used = np.where(np.arange(most) < n, drafts, NO_TOKEN)
        by_data = decide(n, used)
        by_type = jax.jit(rule.decide)(p, gr.IID(q, n), drafts[:n])
        np.testing.assert_allclose(
            np.asarray(by_data.accept)[:n], by_type.accept, atol=1e-12
        )
        assert np.all(np.asarray(by_data.accept)[n:] == 0)
        np.testing.assert_allclose(by_data.residual, by_type.residual, atol=1e-12)


def test_drafts_that_lack_lose_nothing(float64):
    """Of a single token two different drafts are one and none: `NO_TOKEN`."""
    p = np.array([0.1, 0.2, 0.3, 0.4])
    q, drafts = np.array([[0.0, 1.0, 0.0, 0.0]]), np.array([1, NO_TOKEN])
    for law_name in ("without replacement", "top plus sample"):
        law = rule_cases.one(rule_cases.stacked_laws(law_name, q, 2), 0)
        sample = jax.jit(lambda law, key: law.sample(key))
        np.testing.assert_array_equal(sample(law, jax.random.key(0)), drafts)
        rules = rule_cases.served(law)
        assert len(rules) > 3

        def decide(law, rules=rules):
            return {name: r.decide(p, law, drafts) for name, r in rules.items()}

        for name, decision in jax.jit(decide)(law).items():
            emitted = np.array(decision.residual)
            emitted[1] += np.asarray(decision.accept)[0]
            np.testing.assert_allclose(emitted, p, atol=1e-9, err_msg=name)
            assert np.asarray(decision.accept)[1] == 0


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("global-resolution", "recursive-rejection", "k-seq")
        else pytest.param(name, marks=pytest.mark.sweep)
        for name in RULES
    ],
)
def test_a_batch_of_rows_decides_as_each_alone(name):
    """In float32; decisions are distributions."""
    rule, n = RULES[name], 1 if name == "single-draft" else 2
    pairs = list(distributions(8, seed=2, count=3))
    p, q = (np.stack(s).astype(np.float32) for s in zip(*pairs, strict=True))
    q = (0.95 * q + 0.05 / 8).astype(np.float32)
    make = gr.IID if rule_cases.serves(rule, gr.IID(q[0], n)) else gr.TopPlusSample
    keys = jax.random.split(jax.random.key(3), 3)

    def decide(p, q, drafts):
        return rule.decide(p, make(q, n), drafts)

    @jax.jit
    def decide_all(p, q, keys):
        drafts = jax.vmap(lambda q, key: make(q, n).sample(key))(q, keys)
        return drafts, jax.vmap(decide)(p, q, drafts)

    drafts, together = jax.tree.map(np.asarray, decide_all(p, q, keys))
    chex.assert_shape(together.accept, (3, n))
    chex.assert_shape(together.residual, (3, 8))
    assert float(together.accept.min()) >= 0 and float(together.residual.min()) >= 0
    total = together.accept.sum(1) + together.residual.sum(1)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    alone = jax.jit(decide)(p[0], q[0], drafts[0])
    first = jax.tree.map(lambda x: x[0], together)
    chex.assert_trees_all_close(first, alone, atol=1e-5)
