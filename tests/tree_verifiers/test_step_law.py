"""The law of a whole step, every drafted tree and every outcome enumerated."""

import jax.numpy as jnp
import pytest
from mutants import ResidualFromTarget, RowOfTheParent
from tree_cases import VOCAB_SIZE, deviation, independent

import globalres_jax as gr
from globalres_jax import verifiers
from globalres_jax.draft_laws import likeliest
from globalres_jax.tree_verifiers import TopDown

TREES = {
    "2, 2": gr.tree.branching((2, 2)),
    "3, 1": gr.tree.branching((3, 1)),
    "1, 2, 1": gr.tree.branching((1, 2, 1)),
    # Two children, of which one has two and the other one; then one leaf more.
    "ragged": gr.tree.from_parents([-1, 0, 0, 1, 1, 2]),
}
LAWS = {
    "iid": gr.IID,
    "without replacement": gr.WithoutReplacement,
    "top plus sample": gr.TopPlusSample,
    "deterministic": likeliest,
}
RULES = {
    name: rule() for name, rule in verifiers.BY_NAME.items() if "truncated" not in name
}
UNFINISHED = verifiers.GlobalResolution(solver=gr.ProjectedNewton(maxiter=1))


def served(tree, make):
    """The rules that serve the tree's laws."""
    row = jnp.full(VOCAB_SIZE, 1 / VOCAB_SIZE)
    laws = tuple(make(row, group.num_children) for group in tree.groups)
    for name, rule in RULES.items():
        try:
            TopDown(rule).check(tree, laws)
        except (TypeError, ValueError):
            continue
        yield name, rule


def check_all(shape, law, wanted=None):
    """Every rule that serves the law, or those that are wanted, on one tree."""
    tree, names = TREES[shape], []
    for name, rule in served(tree, LAWS[law]):
        if wanted is not None and name not in wanted:
            continue
        names.append(name)
        if (name, law) == ("global-resolution", "without replacement"):
            # Clocks for each of hundreds of trees: the law needs no solution.
            rule = verifiers.GlobalResolution(solver=gr.ProjectedNewton(maxiter=0))
        assert deviation(TopDown(rule), tree, LAWS[law]) <= 1e-9, name
    return set(names)


def test_a_step_has_the_law_of_the_target(float64):
    """On the tree that has everything: leaves early, unequal families.

    An optimal rule, one that looks at one draft after another, and one that looks at
    none; the others are enumerated for one position.
    """
    wanted = {"global-resolution", "recursive-rejection", "target-sample"}
    assert check_all("ragged", "iid", wanted) == wanted


@pytest.mark.parametrize(
    "law",
    [
        "without replacement",
        pytest.param("top plus sample", marks=pytest.mark.sweep),
        pytest.param("deterministic", marks=pytest.mark.sweep),
    ],
)
def test_a_step_of_another_law_has_it_too(law, float64):
    """The best rule that can be made, and one that only this law has, if it has one."""
    wanted = {"global-resolution", "greedy-draft"}
    assert "global-resolution" in check_all("ragged", law, wanted)


@pytest.mark.parametrize("shape", ["2, 2", "1, 2, 1"])
def test_other_shapes_have_it_too(shape, float64):
    assert check_all(shape, "iid", {"recursive-rejection"})


@pytest.mark.sweep
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("law", LAWS)
def test_all_rules_on_all_shapes(shape, law, float64):
    assert {"target-sample"} < check_all(shape, law)


@pytest.mark.parametrize(
    ("makers", "rule"),
    [
        ((gr.IID, gr.WithoutReplacement), verifiers.RecursiveRejection()),
        pytest.param(
            (gr.TopPlusSample, independent), UNFINISHED, marks=pytest.mark.sweep
        ),
        pytest.param(
            (gr.IID, gr.WithoutReplacement), UNFINISHED, marks=pytest.mark.sweep
        ),
        pytest.param(
            (gr.WithoutReplacement, gr.IID), UNFINISHED, marks=pytest.mark.sweep
        ),
    ],
)
def test_levels_may_have_different_laws(makers, rule, float64):
    assert deviation(TopDown(rule), TREES["2, 2"], makers) <= 1e-9


@pytest.mark.sweep
def test_the_published_method_keeps_its_own_bound(float64):
    """Lossless up to 15 tau a position; here n is data, 1 or 2."""
    tau = 1e-4
    rule = verifiers.TruncatedGlobalResolution(tau=tau, max_tuples=20)
    assert deviation(TopDown(rule), gr.tree.paths(2, 2), gr.IID) <= 30 * tau


class ForgetsEqualNodes(TopDown):
    """Mutant: drafts of equal nodes count, but only one of them is looked at."""

    def _outcomes(self, drafted, alike, node, plan):
        alone = jnp.eye(drafted.tree.num_nodes, dtype=bool)
        return super()._outcomes(drafted._replace(same=alone), alike, node, plan)


@pytest.mark.parametrize(
    "mutant",
    [
        TopDown(ResidualFromTarget()),
        ForgetsEqualNodes(verifiers.GlobalResolution()),
        RowOfTheParent(TopDown(verifiers.TargetSample())),
    ],
)
def test_mutants_of_tree_rules_are_caught(mutant, float64):
    assert deviation(mutant, gr.tree.paths(2, 2), gr.IID) > 1e-3
