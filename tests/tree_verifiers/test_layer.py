"""One race per layer: the law of a whole step, and how much it accepts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_block import p_value_of_text

import globalres_jax as gr
from globalres_jax.draft_laws import likeliest
from globalres_jax.testing import expected_length, joint_law, random_tables, step_law
from globalres_jax.tree_verifiers import (
    Block,
    LayerResolution,
    Traversal,
    expected_accepted,
)
from globalres_jax.tree_verifiers import layer as layer_module

VOCAB_SIZE = 3
RAGGED = gr.tree.from_parents([-1, 0, 0, 1, 1, 2])
TARGET, DRAFT = (random_tables(np.random.default_rng(i), VOCAB_SIZE, 3) for i in (0, 1))
# A target that rules some texts out.
TARGET[1][0] = [0.0, 1.0, 0.0]
SOLVED = LayerResolution(maxiter=30, tol=1e-9)
STOPPED = LayerResolution(maxiter=12, tol=1e-7)


def drafts(tables, make):
    """The laws after every text of a level, by `make(q, n)`, or one for each level."""

    def draft(level, num_drafts):
        of = make[level] if isinstance(make, tuple) else make
        each = jax.jit(jax.vmap(lambda q: of(q, num_drafts)))
        return each(jnp.asarray(tables[level]))

    return draft


def iid(tables):
    return drafts(tables, gr.IID)


def deviation(rule, tree, make=gr.IID):
    """Largest difference of the step's law from the target's."""
    tables = TARGET[: tree.depth + 1]
    law = step_law(rule, tree, tables, drafts(DRAFT, make))
    return float(jnp.abs(law - joint_law(tables)).max())


@pytest.mark.parametrize("tree", [gr.paths(2, 2), RAGGED])
def test_a_step_has_the_law_of_the_target(tree, float64):
    assert deviation(SOLVED, tree) <= 1e-9


@pytest.mark.parametrize("iterations", [0, pytest.param(2, marks=pytest.mark.sweep)])
def test_it_has_whatever_the_solver_did(iterations, float64):
    """After no iteration, and after one step: weights of the start and near it."""
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
        pytest.param(gr.TopPlusSample, marks=pytest.mark.sweep),
        pytest.param(likeliest, marks=pytest.mark.sweep),
        pytest.param(
            (gr.IID, gr.WithoutReplacement), marks=pytest.mark.sweep, id="mixed"
        ),
    ],
)
def test_drafts_of_other_laws(make, float64):
    """Siblings that depend on each other are one sample of the race."""
    assert deviation(STOPPED, gr.tree.branching((2, 1)), make) <= 1e-9


# Expected accepted drafts of two paths of two tokens, exact, by a slow program of its
# own: every draw of a layer enumerated, dense Newton steps, numpy. Seed after seed: one
# race per layer; the optimal rule at each node; the linear program of all lossless
# rules that see the whole tree.
GOLDEN = (
    (1.6778807, 1.6017435, 1.6804404),
    (1.8090600, 1.7141328, 1.8205857),
    (1.7089123, 1.6809673, 1.7294561),
    (1.9993597, 1.9710676, 2.0000000),
)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def similar_tables(seed):
    """Tables of p and q with common logits and noise, as the golden numbers have."""
    rng = np.random.default_rng(seed)
    p, q = [], []
    for level in range(3):
        spread = 0.6 if level == 0 else 1.0
        for tables in (p, q):
            tables.append(np.zeros((VOCAB_SIZE**level, VOCAB_SIZE)))
        for text in range(VOCAB_SIZE**level):
            logits = 1.2 * rng.normal(size=VOCAB_SIZE)
            for tables in (p, q):
                noise = spread * rng.normal(size=VOCAB_SIZE)
                tables[level][text] = softmax(logits + noise)
    return p, q


def test_expected_lengths_are_those_of_a_slow_program(float64):
    found = []
    for seed, (layered, per_node, bound) in enumerate(GOLDEN):
        p, q = similar_tables(seed)
        found.append(float(expected_length(SOLVED, gr.paths(2, 2), p, iid(q))))
        assert found[-1] == pytest.approx(layered, abs=2e-6)
        assert per_node < found[-1] <= bound + 1e-6
    assert np.mean(found) > 0.99 * np.mean([bound for _, _, bound in GOLDEN])


def drafted(tree, seed):
    """Tokens, rows of p and laws of one tree, equal nodes with equal rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    same = np.asarray(jax.jit(tree.same_prefix)(tokens)).argmax(1)
    p, q = rng.dirichlet(np.full(VOCAB_SIZE, 0.8), (2, tree.num_nodes))[:, same]
    make = jax.jit(jax.vmap(gr.IID, (0, None)), static_argnums=1)
    laws = tuple(make(q[group.nodes], group.num_children) for group in tree.groups)
    return jnp.asarray(tokens), jnp.asarray(p), laws


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


def test_one_level_is_the_optimal_rule_for_one_position(float64):
    tree = gr.paths(2, 1)
    for seed in range(3):
        tables = [
            random_tables(np.random.default_rng([seed, i]), VOCAB_SIZE, 1)
            for i in range(2)
        ]
        length = expected_length(SOLVED, tree, tables[0], iid(tables[1]))
        law = gr.IID(tables[1][0][0], 2)
        best = jax.jit(gr.optimal_acceptance_rate)(tables[0][0][0], law)
        assert float(length) == pytest.approx(float(best), abs=1e-7)


def test_expected_length_without_replacement(float64):
    """Two different drafts, and one below each; of a slow program, too."""
    p, q = similar_tables(1)
    tree, law = gr.tree.branching((2, 1)), drafts(q, gr.WithoutReplacement)
    found = expected_length(STOPPED, tree, p, law)
    assert float(found) == pytest.approx(1.7861768, abs=2e-6)


class RowOfTheParent(LayerResolution):
    """Mutant: a token is verified against the row before it."""

    def law(self, tree, tokens, p, laws):
        return super().law(tree, tokens, p[np.maximum(tree.parents, 0)], laws)


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


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(RowOfTheParent, marks=pytest.mark.sweep),
        RealisedWeights,
        EqualDraftsCountOnce,
        UncappedRatio,
    ],
)
def test_mutants_are_caught(mutant, float64):
    tables = TARGET[:3]
    law = step_law(mutant(maxiter=0), gr.paths(2, 2), tables, iid(DRAFT))
    assert float(jnp.abs(law - joint_law(tables)).max()) > 1e-3


def test_expected_accepted_has_the_mean_of_the_accepted_lengths(float64):
    """Of this rule, without the chance of how the drafts fell."""
    tree = gr.paths(2, 1)
    _, p, laws = drafted(tree, 0)
    rule = LayerResolution()

    def both(tokens):
        stop = rule.law(tree, tokens, p, laws).stop
        return expected_accepted(rule, tree, tokens, p, laws), stop @ tree.depths

    grid = np.stack(np.meshgrid(*[np.arange(VOCAB_SIZE)] * 2, indexing="ij"), -1)
    trees = np.concatenate([np.zeros((9, 1), int), grid.reshape(-1, 2)], axis=1)
    ours, lengths = jax.jit(jax.vmap(both))(trees)
    chance = np.asarray(laws[0].token_probs)[0][trees[:, 1:]].prod(1)
    np.testing.assert_allclose(ours, chance @ np.asarray(lengths), atol=1e-12)
    assert np.ptp(lengths) > 0.1


def test_expected_accepted_of_any_rule(float64):
    """Its mean length, by the law of where it ends."""
    tree = gr.tree.chain(3)
    args = drafted(tree, 1)

    @jax.jit
    def both(*args):
        stop = Block().law(tree, *args).stop
        return stop, expected_accepted(Block(), tree, *args)

    stop, found = both(*args)
    assert float(found) == pytest.approx(np.asarray(stop) @ np.arange(4.0))


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
