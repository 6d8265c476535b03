"""Every rule is exactly lossless: its output law, enumerated, is the target's."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions
from mutants import ResidualFromTarget

import globalres_jax as gr
from globalres_jax.base import NO_TOKEN
from globalres_jax.verifiers import GlobalResolution, RecursiveRejection, SingleDraft
from globalres_jax.verifiers.rule import Rule

RULES = {
    "global": GlobalResolution(),
    "global, one iteration": GlobalResolution(solver=gr.ProjectedNewton(maxiter=1)),
    "global, no iteration": GlobalResolution(solver=gr.ProjectedNewton(maxiter=0)),
    "recursive": RecursiveRejection(),
}


def cases():
    """(p, q, n) with V <= 6 and n <= 4."""
    for index, (vocab_size, n) in enumerate([(2, 4), (3, 3), (5, 2), (6, 3), (4, 4)]):
        for p, q in distributions(vocab_size, seed=index, count=4):
            yield p, q, n
        for p, q in adversarial(vocab_size).values():
            yield p, q, n


@pytest.mark.parametrize("name", RULES)
def test_output_law_is_the_target(name, float64):
    for p, q, n in cases():
        law = gr.IID(jnp.asarray(q), n)
        output = gr.testing.output_law(RULES[name], jnp.asarray(p), law)
        np.testing.assert_allclose(output, p, atol=1e-9, err_msg=f"{p} {q} {n}")


@pytest.mark.parametrize("name", RULES)
def test_output_law_is_the_target_in_float32(name):
    for p, q, n in cases():
        law = gr.IID(jnp.asarray(q, jnp.float32), n)
        output = gr.testing.output_law(RULES[name], jnp.asarray(p, jnp.float32), law)
        np.testing.assert_allclose(output, p, atol=1e-6, err_msg=f"{p} {q} {n}")


def test_global_resolution_reaches_the_linear_program(float64):
    for p, q, n in cases():
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), n)
        best = gr.testing.linear_program(p, law)
        rate = float(gr.testing.acceptance_rate(GlobalResolution(), p, law))
        assert best - 1e-5 <= rate <= best + 1e-9, (p, q, n)


@pytest.mark.parametrize("name", RULES)
def test_no_rule_accepts_more_than_the_linear_program(name, float64):
    for p, q in distributions(4, seed=7, count=6):
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), 3)
        rate = float(gr.testing.acceptance_rate(RULES[name], p, law))
        assert rate <= gr.testing.linear_program(p, law) + 1e-9


@pytest.mark.parametrize("name", RULES)
def test_decisions_are_distributions(name):
    p, q = next(distributions(5, seed=3, count=1))
    p, q = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
    law = gr.IID(q, 3)
    drafts = law.sample(jax.random.key(0))
    decision = RULES[name].decide(p, law, drafts)
    chex.assert_shape(decision.accept, (3,))
    chex.assert_shape(decision.residual, (5,))
    assert float(decision.accept.min()) >= 0 and float(decision.residual.min()) >= 0
    total = float(decision.accept.sum() + decision.residual.sum())
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["global", "recursive", "single"])
def test_one_draft_accepts_the_overlap(name, float64):
    rules = RULES | {"single": SingleDraft()}
    for p, q in distributions(5, seed=11, count=5):
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), 1)
        output = gr.testing.output_law(rules[name], p, law)
        np.testing.assert_allclose(output, p, atol=1e-9)
        rate = gr.testing.acceptance_rate(rules[name], p, law)
        np.testing.assert_allclose(rate, np.minimum(p, law.probs).sum(), atol=1e-5)


@pytest.mark.parametrize("name", ["global", "recursive"])
def test_equal_models_accept_everything(name, float64):
    for p, _ in distributions(4, seed=5, count=3):
        law = gr.IID(jnp.asarray(p), 2)
        rate = gr.testing.acceptance_rate(RULES[name], jnp.asarray(p), law)
        assert float(rate) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("rule", [GlobalResolution(), RecursiveRejection()])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_closed_acceptance_rate_is_the_enumerated_one(rule, n, float64):
    for p, q in distributions(4, seed=n, count=3):
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), n)
        enumerated = gr.testing.acceptance_rate(rule, p, law)
        # Global resolution counts its picks only; off the optimum, by up to its gap,
        # a residual token may repeat a draft.
        np.testing.assert_allclose(rule.acceptance_rate(p, law), enumerated, atol=1e-5)


@pytest.mark.parametrize("name", ["global", "recursive"])
def test_vocabulary_order_does_not_matter(name, float64):
    p, q = next(distributions(5, seed=2, count=1))
    order = np.array([3, 0, 4, 1, 2])
    drafts = np.array([1, 4, 1])
    plain = RULES[name].decide(jnp.asarray(p), gr.IID(jnp.asarray(q), 3), drafts)
    turned = RULES[name].decide(
        jnp.asarray(p[order]),
        gr.IID(jnp.asarray(q[order]), 3),
        np.argsort(order)[drafts],
    )
    np.testing.assert_allclose(turned.accept, plain.accept, atol=1e-9)
    np.testing.assert_allclose(turned.residual, plain.residual[order], atol=1e-9)


@pytest.mark.parametrize("rule", [GlobalResolution(), RecursiveRejection()])
def test_unused_slots_change_nothing(rule, float64):
    """Three slots of which two are in use decide as two slots do; n is data."""
    p, q = (jnp.asarray(x) for x in next(distributions(4, seed=9, count=1)))
    tight = rule.decide(p, gr.IID(q, 2), jnp.array([1, 3]))
    loose = jax.jit(lambda n, x: rule.decide(p, gr.IID(q, n), x))(
        2, jnp.array([1, NO_TOKEN, 3])
    )
    np.testing.assert_allclose(
        loose.accept[jnp.array([0, 2])], tight.accept, atol=1e-12
    )
    assert float(loose.accept[1]) == 0
    np.testing.assert_allclose(loose.residual, tight.residual, atol=1e-12)


@pytest.mark.parametrize("rule", [GlobalResolution(), RecursiveRejection()])
def test_jit_and_vmap_agree_with_plain_calls(rule, float64):
    pairs = [tuple(map(jnp.asarray, pair)) for pair in distributions(4, 13, 5)]
    p, q = (jnp.stack(side) for side in zip(*pairs, strict=True))
    drafts = jnp.array([[0, 1], [2, 2], [3, 0], [1, 3], [2, 1]])

    def decide(p, q, x):
        return rule.decide(p, gr.IID(q, 2), x)

    batched = jax.jit(jax.vmap(decide))(p, q, drafts)
    for i in range(5):
        single = decide(p[i], q[i], drafts[i])
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], batched), single, atol=1e-9
        )


def test_plans_of_the_second_solver_are_lossless_too(float64):
    rule = GlobalResolution(solver=gr.BoxLBFGS(maxiter=3))
    for p, q in [*distributions(4, 17, 3), *adversarial(4).values()]:
        law = gr.IID(jnp.asarray(q), 3)
        output = gr.testing.output_law(rule, jnp.asarray(p), law)
        np.testing.assert_allclose(output, p, atol=1e-9)


def test_max_support_solves_the_same_problem(float64):
    q = jnp.array([0.5, 0, 0.3, 0, 0.2, 0])
    p = jnp.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.1])
    full, small = gr.IID(q, 3), gr.IID(q, 3, max_support=3)
    rule = GlobalResolution()
    np.testing.assert_allclose(gr.testing.output_law(rule, p, small), p, atol=1e-9)
    np.testing.assert_allclose(
        gr.testing.acceptance_rate(rule, p, small),
        gr.testing.acceptance_rate(rule, p, full),
        atol=1e-5,
    )


def test_a_support_that_is_larger_than_promised_is_still_lossless(float64):
    """Under jit nobody can count; the mass left over is never picked, but counted."""
    p, q = (jnp.asarray(x) for x in next(distributions(5, seed=21, count=1)))
    drafts = jnp.array(list(np.ndindex(5, 5)))

    @jax.jit
    def outcomes(p, q):
        law = gr.IID(q, 2, max_support=3)
        decide = GlobalResolution().decide
        return jax.vmap(lambda x: decide(p, law, x))(drafts)

    decision = outcomes(p, q)
    emitted = jax.vmap(lambda a, r, x: r.at[x].add(a))(*decision, drafts)
    weight = q[drafts[:, 0]] * q[drafts[:, 1]]
    np.testing.assert_allclose(weight @ emitted, p, atol=1e-9)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SkipsDuplicates(RecursiveRejection):
    """Mutant: a repeated draft is skipped without updating the residual."""

    def resolve(self, plan, p, law, draft_tokens):
        def seen_before(j):
            return jnp.any((draft_tokens == draft_tokens[j])[:j])

        kept = [
            jnp.where(seen_before(j), NO_TOKEN, draft_tokens[j])
            for j in range(draft_tokens.shape[0])
        ]
        return super().resolve(plan, p, law, jnp.stack(kept))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class WrongPickLaw(GlobalResolution):
    """Mutant: beta computed for one draft fewer than were drawn."""

    def prepare(self, p, law):
        return super().prepare(p, gr.IID(law.probs, law.num_drafts - 1))


@pytest.mark.parametrize("mutant", [SkipsDuplicates, ResidualFromTarget, WrongPickLaw])
def test_mutants_are_caught(mutant, float64):
    p, q = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([0.5, 0.3, 0.1, 0.1])
    output = gr.testing.output_law(mutant(), p, gr.IID(q, 3))
    assert float(jnp.abs(output - p).max()) > 1e-3


def test_wrong_law_and_wrong_shapes_raise():
    p = jnp.array([0.5, 0.5])
    with pytest.raises(TypeError, match="law: GlobalResolution serves any draft law"):
        GlobalResolution().decide(p, "IID", jnp.array([0]))
    with pytest.raises(ValueError, match="SingleDraft verifies 1 draft, got 2"):
        SingleDraft().decide(p, gr.IID(p, 2), jnp.array([0, 1]))
    with pytest.raises(ValueError, match="draft_tokens: expected shape"):
        GlobalResolution().decide(p, gr.IID(p, 2), jnp.array([[0, 1]]))
    with pytest.raises(ValueError, match="draft_tokens: 1 slots"):
        GlobalResolution().decide(p, gr.IID(p, 2), jnp.array([0]))
    with pytest.raises(ValueError, match="unknown rule 'best'; one of global-resol"):
        gr.verifiers.by_name("best")
    with pytest.raises(TypeError, match="does not define resolve"):
        Rule().resolve((), p, None, None)
