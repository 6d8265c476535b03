"""Traversal verification: the law of a whole step, and how much it accepts."""

import pytest
from tree_cases import RAGGED, deviation, drafts, iid, similar_tables

import globalres_jax as gr
from globalres_jax.testing import expected_length
from globalres_jax.tree_verifiers import Block, HierarchicalSpeculative, Traversal
from globalres_jax.tree_verifiers import traversal as traversal_module

# Expected accepted drafts of two paths of two tokens, exact, by a slow program of its
# own that follows the published algorithm node by node; seed after seed.
GOLDEN = (1.4429805, 1.6527462, 1.5597310, 1.9514842)


@pytest.mark.parametrize(
    ("tree", "make"),
    [
        (gr.paths(2, 2), gr.IID),
        (RAGGED, gr.IID),
        (RAGGED, gr.WithoutReplacement),
        # Its first drafts are leaves, for which others may stand.
        pytest.param(
            gr.tree.from_parents([-1, 0, 0, 0, 3, 3, 2]),
            gr.IID,
            marks=pytest.mark.sweep,
        ),
        pytest.param(gr.tree.branching((2, 2)), gr.IID, marks=pytest.mark.sweep),
        pytest.param(
            gr.tree.branching((3, 2)), gr.WithoutReplacement, marks=pytest.mark.sweep
        ),
    ],
)
def test_a_step_has_the_law_of_the_target(tree, make, float64):
    assert deviation(Traversal(), tree, make) <= 1e-9


def test_expected_lengths_are_those_of_a_slow_program(float64):
    for seed, length in enumerate(GOLDEN):
        p, q = similar_tables(seed)
        found = float(expected_length(Traversal(), gr.paths(2, 2), p, iid(q)))
        assert found == pytest.approx(length, abs=1e-6)


def test_expected_lengths_without_replacement(float64):
    for seed, length in enumerate((1.6154087, 1.9007694, 1.8731077)):
        p, q = similar_tables(seed)
        law = drafts(q, gr.WithoutReplacement)
        found = expected_length(Traversal(), gr.tree.branching((2, 2)), p, law)
        assert float(found) == pytest.approx(length, abs=1e-6)


class KeepsRejectedTokens(Traversal):
    """Mutant: a rejected draft stays in the law of the next one."""


class ForgetsRejections(Traversal):
    """Mutant: what a node may emit stays what it was."""


@pytest.mark.parametrize(
    ("mutant", "field"), [(KeepsRejectedTokens, "q"), (ForgetsRejections, "mass")]
)
def test_mutants_are_caught(mutant, field, monkeypatch, float64):
    correct = traversal_module._look_at

    def look_at(layer, draft, at):
        return correct(layer, draft, at)._replace(**{field: getattr(at, field)})

    monkeypatch.setattr(traversal_module, "_look_at", look_at)
    assert deviation(mutant(), gr.paths(2, 2)) > 1e-3


def test_other_laws_are_refused():
    with pytest.raises(TypeError, match="law: Traversal serves IID or Without"):
        gr.SpeculativeConfig(law=gr.TopPlusSample, verifier=Traversal())
    laws = gr.IID, gr.WithoutReplacement
    with pytest.raises(TypeError, match="got IID, WithoutReplacement"):
        gr.SpeculativeConfig(tree=gr.paths(2, 2), law=laws, verifier=Traversal())


def test_hierarchical_speculative_decoding_is_block_verification():
    assert HierarchicalSpeculative() == Block()
