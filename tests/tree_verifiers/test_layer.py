"""One race per layer: the law of a whole step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutants import RowOfTheParent
from test_block import p_value_of_text
from tree_cases import RAGGED, deviation, drafted, independent

import globalres_jax as gr
from globalres_jax.draft_laws import likeliest
from globalres_jax.testing import random_tables
from globalres_jax.tree_verifiers import Block, LayerResolution, Traversal
from globalres_jax.tree_verifiers import layer as layer_module

SOLVED = LayerResolution(maxiter=30, tol=1e-9)
STOPPED = LayerResolution(maxiter=12, tol=1e-7)


@pytest.mark.parametrize(
    "tree", [pytest.param(gr.paths(2, 2), marks=pytest.mark.sweep), RAGGED]
)
def test_a_step_has_the_law_of_the_target(tree, float64):
    assert deviation(SOLVED, tree) <= 1e-9


@pytest.mark.parametrize("iterations", [pytest.param(0, marks=pytest.mark.sweep), 1])
def test_it_has_whatever_the_solver_did(iterations, float64):
    """After no iteration, and after one: weights of the start and near it."""
    assert deviation(LayerResolution(maxiter=iterations), gr.paths(2, 2)) <= 1e-9


@pytest.mark.sweep
@pytest.mark.parametrize(
    "tree",
    [
        gr.paths(3, 2),
        gr.tree.branching((1, 2, 1)),
        gr.tree.branching((2, 2)),
        gr.tree.from_parents([-1, 0, 0, 0, 3, 3, 2]),
    ],
)
def test_other_shapes_have_it_too(tree, float64):
    assert deviation(SOLVED, tree) <= 1e-9


@pytest.mark.parametrize(
    "make",
    [
        gr.WithoutReplacement,
        pytest.param((independent, gr.IID), marks=pytest.mark.sweep, id="different"),
        pytest.param(gr.TopPlusSample, marks=pytest.mark.sweep),
        pytest.param(likeliest, marks=pytest.mark.sweep),
        pytest.param(
            (gr.IID, gr.WithoutReplacement), marks=pytest.mark.sweep, id="mixed"
        ),
        pytest.param(
            (gr.WithoutReplacement, independent), marks=pytest.mark.sweep, id="mixed 2"
        ),
    ],
)
def test_drafts_of_other_laws(make, float64):
    """Siblings that depend on each other are one sample of the race."""
    assert deviation(STOPPED, gr.tree.branching((2, 1)), make) <= 1e-9


@pytest.mark.sweep
@pytest.mark.parametrize("iterations", [0, 1])
def test_three_siblings_without_replacement(iterations, float64):
    """Of four tokens, below one node, whose weight is less than 1."""
    pair = [random_tables(np.random.default_rng(i), 4, 2) for i in (0, 1)]
    tree, make = gr.tree.branching((1, 3)), (gr.IID, gr.WithoutReplacement)
    rule = LayerResolution(maxiter=iterations)
    assert deviation(rule, tree, make, pair) <= 1e-9


@pytest.mark.parametrize("rule", [LayerResolution(), Traversal()])
def test_one_path_is_block_verification(rule, float64):
    tree = gr.tree.chain(3)
    laws = [
        jax.jit(lambda *args, rule=rule: rule.law(tree, *args))
        for rule in (rule, Block())
    ]
    for seed in range(4):
        ours, theirs = (law(*drafted(tree, seed)) for law in laws)
        np.testing.assert_allclose(ours.stop, theirs.stop, atol=1e-12)
        ours, theirs = (
            np.asarray(law.stop)[:, None] * np.asarray(law.next)
            for law in (ours, theirs)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


class RealisedWeights(LayerResolution):
    """Mutant: what the drawn drafts got is taken away, not what they get on average."""

    def _flow(self, tree, tokens, p, laws, held):
        flow = super()._flow(tree, tokens, p, laws, held)
        drafted = layer_module.layers(tree, tokens, p, held)
        own = flow.weight[:-1, : drafted.p.shape[1]]
        level = jnp.arange(tree.depth)[:, None]
        taken = jnp.zeros_like(flow.rest)
        taken = taken.at[level, drafted.parent, drafted.slot].add(flow.weight[1:])
        rest = jnp.maximum(own[..., None] * drafted.p - taken, 0)
        kept = rest.sum(-1) + own * drafted.beyond
        left = flow.left.at[:-1, : kept.shape[1]].set(kept)
        return flow._replace(rest=rest, left=left)


class EqualDraftsCountOnce(LayerResolution):
    """Mutant: what merges is the node, not the weight of its drafts."""

    def _next(self, layer, target, solution):
        alone = layer.alike & jnp.eye(layer.alike.shape[-1], dtype=bool)
        return super()._next(layer._replace(alike=alone), target, solution)


class UncappedRatio(LayerResolution):
    """Mutant: a draft that is picked too rarely gets more than the pick."""

    def _next(self, layer, target, solution):
        weight = super()._next(layer, target, solution)
        at = layer.parent, layer.slot
        pick = jnp.where(solution.pick > 0, solution.pick, 1)
        return weight * jnp.maximum(1, target[at] / pick[at])


class LooksAtDeeperRows(LayerResolution):
    """Mutant: a node has less weight where the target after it lacks token 0."""

    def _descend(self, layer, drafts, weight):
        seen = jnp.where(layer.counts > 0, 0.5 + 0.5 * layer.p[:, 0], 1)
        return super()._descend(layer, drafts, weight.at[: len(seen)].multiply(seen))


@pytest.mark.parametrize(
    "mutant",
    [
        RowOfTheParent(LayerResolution(maxiter=2)),
        RealisedWeights(maxiter=2),
        LooksAtDeeperRows(maxiter=2),
        *(
            pytest.param(mutant(maxiter=2), marks=pytest.mark.sweep)
            for mutant in (EqualDraftsCountOnce, UncappedRatio)
        ),
    ],
)
def test_mutants_are_caught(mutant, float64):
    assert deviation(mutant, gr.paths(2, 2)) > 1e-3


def test_levels_of_unequal_families_are_refused():
    match = "level 1 has 1 by WithoutReplacement and 2 by WithoutReplacement"
    with pytest.raises(TypeError, match=match):
        gr.SpeculativeConfig(
            tree=RAGGED, law=gr.WithoutReplacement, verifier=LayerResolution()
        )


@pytest.mark.sweep
def test_text_is_the_target_s():
    config = gr.SpeculativeConfig(tree=gr.paths(2, 2), verifier=LayerResolution())
    assert p_value_of_text(config) > 1e-4
