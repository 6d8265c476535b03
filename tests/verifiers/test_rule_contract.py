"""What rules refuse, in words, and that the protocol is all a rule needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax import verifiers
from globalres_jax.verifiers.rule import Rule


@dataclasses.dataclass(frozen=True)
class FirstOrTarget:
    """A rule from `base.Verifier` alone: the first draft against q, nothing else."""

    def check(self, law):
        if not law.joins:
            raise TypeError("independent drafts only")

    def prepare(self, p, law):
        return law.probs

    def resolve(self, plan, p, law, draft_tokens):
        token = draft_tokens[0]
        chance = jnp.minimum(1, p[token] / plan[token])
        left = jnp.maximum(p - plan, 0)
        accept = jnp.zeros(draft_tokens.shape, p.dtype).at[0].set(chance)
        return gr.Decision(accept, (1 - chance) * left / left.sum())

    def decide(self, p, law, draft_tokens):
        self.check(law)
        return self.resolve(self.prepare(p, law), p, law, draft_tokens)


def test_a_rule_from_the_protocol_alone_is_enumerated(float64):
    p, law = jnp.array([0.1, 0.2, 0.7]), gr.IID(jnp.array([0.5, 0.3, 0.2]), 2)
    output = gr.testing.output_law(FirstOrTarget(), p, law)
    np.testing.assert_allclose(output, p, atol=1e-12)
    rate = gr.testing.acceptance_rate(FirstOrTarget(), p, law)
    naive = gr.testing.acceptance_rate(verifiers.Naive(), p, law)
    assert float(rate) == pytest.approx(float(naive), abs=1e-12)


def test_laws_that_a_rule_does_not_serve_are_refused():
    q = np.array([0.5, 0.3, 0.2])
    for rule, law, message in [
        (verifiers.GlobalResolution(), "IID", "law: GlobalResolution serves any draft"),
        (verifiers.KSeq(), gr.WithoutReplacement(q, 2), "KSeq serves IID, got Without"),
        (verifiers.KSeq(), gr.Deterministic([0, 1], 3), "KSeq serves IID, got Determ"),
        (verifiers.GreedyDraft(), gr.IID(q, 2), "GreedyDraft serves TopPlusSample"),
        (verifiers.Khisti(), gr.Deterministic([0, 1], 3), "serves IID, Independent"),
        (verifiers.Naive(), gr.TopPlusSample(q, 2), "Naive serves IID, Independent"),
    ]:
        with pytest.raises(TypeError, match=message):
            rule.decide(q, law, np.array([0, 1]))
    data = gr.IID(q, jnp.array(2))
    for rule, law, message in [
        (verifiers.SpecHub(), gr.TopPlusSample(q, 3), "SpecHub verifies 2 drafts, got"),
        (verifiers.SingleDraft(), gr.IID(q, 2), "SingleDraft verifies 1 draft, got 2"),
        (verifiers.SingleDraft(), data, "num_drafts: SingleDraft verifies 1 draft"),
        (verifiers.Khisti(), data, "num_drafts: Khisti plays .* or max_drafts"),
        (verifiers.TruncatedGlobalResolution(), data, "TruncatedGlobalResolution enum"),
    ]:
        with pytest.raises(ValueError, match=message):
            rule.check(law)
    for rule in (verifiers.Khisti(), verifiers.TruncatedGlobalResolution()):
        rule.check(gr.IID(q, jnp.array(2), max_drafts=3))


def test_bad_targets_and_drafts_are_named():
    rule, law = verifiers.TargetSample(), gr.IID(jnp.array([0.5, 0.5]), 2)
    for p, message in [
        ([0.5, jnp.nan], "p: contains NaN"),
        ([1.5, -0.5], "p: contains the negative value -0.5"),
        ([0.0, 0.0], "p: is zero everywhere"),
        ([0.5, 0.2], "p: sums to 0.7"),
        ([0.2, 0.3, 0.5], "p: has 3 tokens, the draft law has 2"),
        ([[0.5, 0.5]], "p: expected a non-empty array of 1 dimension"),
    ]:
        with pytest.raises(ValueError, match=message):
            rule.decide(jnp.array(p), law, jnp.array([0, 1]))
    p = jnp.array([0.5, 0.5])
    with pytest.raises(ValueError, match="draft_tokens: expected shape"):
        rule.decide(p, law, jnp.array([[0, 1]]))
    with pytest.raises(ValueError, match="draft_tokens: 1 slots for a law that draws"):
        rule.decide(p, law, jnp.array([0]))
    with pytest.raises(ValueError, match="unknown rule 'best'; one of global-resol"):
        verifiers.by_name("best")


def test_what_a_rule_does_not_define_is_said():
    q = jnp.array([0.5, 0.3, 0.2])
    with pytest.raises(TypeError, match="does not define resolve"):
        Rule().resolve((), q, None, None)
    assert not Rule().has_acceptance_rate(gr.IID(q, 2))
    law = gr.WithoutReplacement(q, 2)
    for rule in (verifiers.RecursiveRejection(), verifiers.Naive()):
        assert not rule.has_acceptance_rate(law)
        with pytest.raises(TypeError, match="does not define acceptance_rate"):
            rule.acceptance_rate(q, law)


def test_rules_are_equal_when_alike():
    for rule in verifiers.BY_NAME.values():
        assert rule() == rule() and hash(rule()) == hash(rule())
        assert not jax.tree.leaves(rule())
    assert verifiers.Khisti() != verifiers.Khisti(size=3)
