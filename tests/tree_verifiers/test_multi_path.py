"""Greedy multi-path block verification: the law of a whole step, and how much of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutants import RowOfTheParent
from tree_cases import DRAFT, RAGGED, TARGET, drafted, iid, similar_tables
from tree_cases import deviation as deviation_of

import globalres_jax as gr
from globalres_jax.testing import expected_length
from globalres_jax.testing.steps import drawn_trees
from globalres_jax.tree_verifiers import Block, GreedyMultiPathBlock
from globalres_jax.tree_verifiers import multi_path as multi_path_module
from globalres_jax.tree_verifiers.expected import reached_by_level

# Expected accepted drafts of two paths of two tokens, exact, by a slow program of its
# own that takes the differences of powers as they are; seed after seed.
GOLDEN = (1.5571572, 1.4414450, 1.6256425, 1.7978348)


def with_ties(tables):
    """Two tokens of the first row, and all of another, are alike in p / q."""
    tables = [table.copy() for table in tables]
    tables[0][0] = [1.5, 0.7, 0.7] * DRAFT[0][0]
    tables[0][0] /= tables[0][0].sum()
    tables[1][2] = DRAFT[1][2]
    return tables


def deviation(rule, tree):
    """Largest difference of the step's law from the target's, which has ties."""
    return deviation_of(rule, tree, pair=(with_ties(TARGET), DRAFT))


@pytest.mark.parametrize(
    "tree",
    [
        gr.tree.branching((2, 2)),
        *(
            pytest.param(tree, marks=pytest.mark.sweep)
            for tree in (
                gr.paths(2, 2),
                gr.paths(3, 2),
                gr.tree.delayed(1, 3, 2),
                gr.tree.branching((2, 1, 2)),
                gr.tree.branching((2, 3)),
            )
        ),
    ],
)
def test_a_step_has_the_law_of_the_target(tree, float64):
    assert deviation(GreedyMultiPathBlock(), tree) <= 1e-9


def test_expected_lengths_are_those_of_a_slow_program(float64):
    for seed, length in enumerate(GOLDEN):
        p, q = similar_tables(seed)
        rule = GreedyMultiPathBlock()
        found = float(expected_length(rule, gr.paths(2, 2), p, iid(q)))
        assert found == pytest.approx(length, abs=1e-6)


def test_the_mean_given_the_text_above_is_that_of_the_lengths(float64):
    tree, rule = gr.paths(2, 2), GreedyMultiPathBlock()
    p, q = map(lambda tables: list(map(jnp.asarray, tables)), similar_tables(0))
    texts, chance = drawn_trees(tree, 3, iid(q))

    @jax.jit
    @jax.vmap
    def by_both(text):
        rows = jnp.stack([p[d][text[node]] for node, d in enumerate(tree.depths)])
        laws = tuple(
            jax.vmap(lambda row, n=group.num_children: gr.IID(row, n))(
                q[group.level][text[group.nodes]]
            )
            for group in tree.groups
        )
        arguments = tree, text % 3, rows, laws
        stop = rule.law(*arguments).stop
        return rule.expected_by_level(*arguments), reached_by_level(tree, stop)

    ours, reached = map(np.asarray, by_both(texts))
    np.testing.assert_allclose(chance @ ours, chance @ reached, atol=1e-12)
    assert float(chance @ ours.sum(1)) == pytest.approx(GOLDEN[0], abs=1e-6)
    # What the first level adds does not depend on what was drawn.
    assert np.ptp(ours[:, 0]) < 1e-12 < np.ptp(reached[:, 0])


def test_one_path_is_block_verification(float64):
    tree = gr.tree.chain(3)
    args = drafted(tree, 0)
    ours, theirs = jax.jit(
        lambda *args: [
            rule.law(tree, *args) for rule in (GreedyMultiPathBlock(), Block())
        ]
    )(*args)
    np.testing.assert_allclose(ours.stop, theirs.stop, atol=1e-12)
    ours, theirs = (law.stop[:, None] * law.next for law in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def selected_law(path, tables, forks):
    """The law of the next selected token after `path`, for `forks [D]` drafts."""
    found = ()
    for drafts, token, q in zip(forks, [*path, None], tables, strict=False):
        if drafts > 1:
            one, zero = jnp.ones((), q.dtype), jnp.zeros((), q.dtype)
            found = (*found, multi_path_module._Fork(zero, one, zero, drafts))
        before = jnp.cumsum(q) - q
        law, less = multi_path_module._skewed(found, before, q)
        if token is not None:
            found = multi_path_module._narrowed(
                found, before[token], q[token], [x[token] for x in less]
            )
    return law


def test_the_law_of_an_unlikely_text_does_not_cancel():
    """In float32, where the text itself has a probability of 1e-22."""
    q = np.full(8, 1e-6)
    q[[0, 7]] = 0.5 - 3e-6
    law = selected_law((1, 3, 2), [jnp.asarray(q, jnp.float32)] * 4, (16, 1, 4, 1))
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    # Two drafts hardly ever share such a text, and one alone goes on by q.
    np.testing.assert_allclose(law, q, rtol=1e-3)


class TiesTheOtherWay(GreedyMultiPathBlock):
    """Mutant: among equal tokens the first is selected, not the last."""


class AsIfOneDraft(GreedyMultiPathBlock):
    """Mutant: the selected path is verified as if it had been drafted alone."""


def ties_the_other_way(p, q):
    rank, before = ties_the_other_way.correct(p, q)
    ratio = p / q
    equal = jnp.isclose(ratio[:, None], ratio[None])
    within = jnp.sum(equal & (rank[:, None] > rank[None]), axis=1)
    return rank + jnp.sum(equal, axis=1) - 1 - 2 * within, before


def as_if_one_draft(forks, before, q):
    del before
    return q, [q for _ in forks]


@pytest.mark.parametrize(
    ("mutant", "name", "broken"),
    [
        (TiesTheOtherWay(), "_order", ties_the_other_way),
        (AsIfOneDraft(), "_skewed", as_if_one_draft),
        (RowOfTheParent(GreedyMultiPathBlock()), None, None),
    ],
)
def test_mutants_are_caught(mutant, name, broken, monkeypatch, float64):
    if name is not None:
        broken.correct = getattr(multi_path_module, name)
        monkeypatch.setattr(multi_path_module, name, broken)
    tree = gr.paths(2, 1)
    assert deviation(mutant, tree) > 1e-3


def test_unequal_families_and_other_laws_are_refused():
    rule = GreedyMultiPathBlock()
    with pytest.raises(ValueError, match=r"tree: .* level 1 has \[1, 2\]"):
        gr.SpeculativeConfig(tree=RAGGED, verifier=rule)
    with pytest.raises(TypeError, match=r"law: .* IID drafts, got TopPlusSample"):
        gr.SpeculativeConfig(law=gr.TopPlusSample, verifier=rule)
