"""How much rules for trees accept: against slow programs, bounds and simulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tree_cases import VOCAB_SIZE, drafted, drafts, iid, similar_tables

import globalres_jax as gr
from globalres_jax.testing import expected_length, longest_run, random_tables
from globalres_jax.tree_verifiers import (
    Block,
    GreedyMultiPathBlock,
    LayerResolution,
    TopDown,
    Traversal,
    expected_accepted,
    expected_by_level,
)
from globalres_jax.verifiers import SingleDraft

SOLVED = LayerResolution(maxiter=30, tol=1e-9)
PATHS = gr.paths(2, 2)

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


def test_expected_lengths_are_those_of_a_slow_program(float64):
    found, bounds = [], []
    for seed, (layered, per_node, bound) in enumerate(GOLDEN):
        p, q = similar_tables(seed)
        found.append(float(expected_length(SOLVED, PATHS, p, iid(q))))
        bounds.append(longest_run(PATHS, p, iid(q)))
        assert found[-1] == pytest.approx(layered, abs=2e-6)
        assert bounds[-1] == pytest.approx(bound, abs=1e-6)
        assert per_node < found[-1] <= bound + 1e-6
    assert np.mean(found) > 0.99 * np.mean(bounds)


@pytest.mark.sweep
def test_one_race_per_layer_is_near_the_bound_and_beyond_the_optimum_per_node(float64):
    """Over 200 pairs, as the rule comes, its solver stopped where it stops."""
    layered, per_node, bounds = [], [], []
    alone = TopDown(gr.verifiers.GlobalResolution())
    for seed in range(200):
        p, q = similar_tables(seed)
        layered.append(float(expected_length(LayerResolution(), PATHS, p, iid(q))))
        per_node.append(float(expected_length(alone, PATHS, p, iid(q))))
        bounds.append(longest_run(PATHS, p, iid(q)))
    assert np.all(np.asarray(layered) <= np.asarray(bounds) + 1e-6)
    assert np.mean(layered) > np.mean(per_node) + 0.03
    assert np.mean(layered) > 0.99 * np.mean(bounds)


@pytest.mark.sweep
def test_one_level_is_the_optimal_rule_for_one_position(float64):
    tree = gr.paths(2, 1)
    for seed in range(3):
        p, q = (
            random_tables(np.random.default_rng([seed, i]), VOCAB_SIZE, 1)
            for i in range(2)
        )
        length = expected_length(SOLVED, tree, p, iid(q))
        best = gr.optimal_acceptance_rate(p[0][0], gr.IID(q[0][0], 2))
        assert float(length) == pytest.approx(float(best), abs=1e-7)
        assert longest_run(tree, p, iid(q)) == pytest.approx(float(best), abs=1e-7)


def test_expected_length_without_replacement(float64):
    """Two different drafts, and one below each; of a slow program, too."""
    p, q = similar_tables(1)
    tree, law = gr.tree.branching((2, 1)), drafts(q, gr.WithoutReplacement)
    found = expected_length(LayerResolution(maxiter=12, tol=1e-7), tree, p, law)
    assert float(found) == pytest.approx(1.7861768, abs=2e-6)


@functools.partial(jax.jit, static_argnames=("rule", "tree"))
def accepted(rule, tree, keys, target, laws):
    """Drafts that walks of freshly drawn trees accept, and what the rule expected.

    One for each of `keys`; NaN where it does not say.
    """

    def one(key):
        key_draft, key_walk = jax.random.split(key)
        text = jnp.zeros(tree.num_nodes, jnp.int32)
        tokens, of_nodes = text, []
        for i, (group, law) in enumerate(zip(tree.groups, laws, strict=True)):
            of_nodes.append(jax.tree.map(lambda x, t=text[group.nodes]: x[t], law))
            each = jax.random.split(jax.random.fold_in(key_draft, i), len(group.nodes))
            drawn = jax.vmap(lambda law, key: law.sample(key))(of_nodes[-1], each)
            tokens = tokens.at[group.children].set(drawn)
            above = text[group.nodes][:, None] * VOCAB_SIZE
            text = text.at[group.children].set(above + drawn)
        p = jnp.stack([target[d][text[node]] for node, d in enumerate(tree.depths)])
        walk = rule.walk(key_walk, tree, tokens, p, tuple(of_nodes))
        said = jnp.nan if walk.expected is None else walk.expected
        return jnp.stack([walk.accept_length, said])

    return jax.vmap(one)(keys).T


@pytest.mark.parametrize(
    "rule",
    [
        LayerResolution(),
        pytest.param(GreedyMultiPathBlock(), marks=pytest.mark.sweep),
        pytest.param(Traversal(), marks=pytest.mark.sweep),
        pytest.param(
            TopDown(gr.verifiers.RecursiveRejection()), marks=pytest.mark.sweep
        ),
    ],
)
def test_expected_lengths_are_those_of_walks(rule, float64):
    p, q = similar_tables(1)
    laws = tuple(iid(q)(group.level, group.num_children) for group in PATHS.groups)
    keys = jax.random.split(jax.random.key(0), 2000)
    target = tuple(map(jnp.asarray, p))
    lengths, said = np.asarray(accepted(rule, PATHS, keys, target, laws))
    error = lengths.std() / np.sqrt(len(lengths))
    expected = float(expected_length(rule, PATHS, p, iid(q)))
    assert abs(lengths.mean() - expected) < 4 * error < 0.1
    if isinstance(rule, LayerResolution):
        assert said.std() < lengths.std()
        error = said.std() / np.sqrt(len(said))
        assert abs(said.mean() - expected) < 5 * error


def test_expected_accepted_has_the_mean_of_the_accepted_lengths(float64):
    """Of this rule, without the chance of how the drafts fell."""
    tree = gr.paths(2, 1)
    _, p, laws = drafted(tree, 0)
    rule = LayerResolution()

    @jax.jit
    def every(tokens):
        stop = rule.law(tree, tokens, p, laws).stop
        weights = rule.weights(tree, tokens, p, laws)
        expected = expected_accepted(rule, tree, tokens, p, laws)
        return expected, stop @ tree.depths, jnp.sum(weights[1:])

    grid = np.stack(np.meshgrid(*[np.arange(VOCAB_SIZE)] * 2, indexing="ij"), -1)
    trees = np.concatenate([np.zeros((9, 1), int), grid.reshape(-1, 2)], axis=1)
    ours, lengths, weights = jax.vmap(every)(jnp.asarray(trees))
    chance = np.asarray(laws[0].token_probs)[0][trees[:, 1:]].prod(1)
    np.testing.assert_allclose(ours, chance @ np.asarray(lengths), atol=1e-12)
    np.testing.assert_allclose(ours, chance @ np.asarray(weights), atol=1e-12)
    assert np.ptp(lengths) > 0.1


def test_expected_accepted_of_any_rule(float64):
    """Its mean length, by the law of where it ends."""
    tree = gr.tree.chain(3)
    args = drafted(tree, 1)
    rule = TopDown(SingleDraft())

    @jax.jit
    def both(*args):
        return rule.law(tree, *args).stop, expected_accepted(rule, tree, *args)

    stop, found = map(np.asarray, both(*args))
    assert float(found) == pytest.approx(float(stop @ np.arange(4.0)))


def test_what_each_level_adds_to_the_accepted(float64):
    """One path: the same by both rules, and first what a shorter one has."""
    tree = gr.tree.chain(3)
    rules = (
        LayerResolution(),
        GreedyMultiPathBlock(),
        Traversal(),
        TopDown(SingleDraft()),
    )

    @jax.jit
    def measured(tokens, p, laws):
        shorter = gr.tree.chain(2), tokens[:3], p[:3], laws[:2]
        block = expected_by_level(Block(), tree, tokens, p, laws)
        added = [expected_by_level(rule, tree, tokens, p, laws) for rule in rules]
        totals = [expected_accepted(rule, tree, tokens, p, laws) for rule in rules]
        return block, expected_by_level(Block(), *shorter), added, totals

    block, short, added, totals = measured(*drafted(tree, 1))
    np.testing.assert_allclose(short, block[:2], atol=1e-12)
    for same in added[:3]:
        np.testing.assert_allclose(same, block, atol=1e-9)
    np.testing.assert_allclose(np.sum(added, axis=1), totals, atol=1e-12)
