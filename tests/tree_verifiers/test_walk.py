"""A walk is a draw of the law that `law` computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import globalres_jax as gr
from globalres_jax.tree_verifiers import (
    GreedyMultiPathBlock,
    LayerResolution,
    TopDown,
    Traversal,
    as_tree_verifier,
)

TREE = gr.tree.from_parents([-1, 0, 0, 0, 1, 1, 2])
# Nodes 1 and 2 spell the same, so that their children join; 4 and 6 are alike, too.
TOKENS = jnp.array([0, 1, 1, 2, 0, 2, 0])
DRAWS = 8_000


def rows(seed, count):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.dirichlet(np.full(3, 0.8), count), jnp.float32)


def drafted(tree, make):
    """Rows of p and laws; equal nodes have equal ones."""
    same = jnp.argmax(tree.same_prefix(TOKENS), axis=1)
    p, q = (rows(seed, tree.num_nodes)[same] for seed in (0, 1))
    laws = tuple(
        jax.vmap(lambda row, n=group.num_children: make(row, n))(q[group.nodes])
        for group in tree.groups
    )
    return p, laws


def p_value(rule, make, tree=TREE):
    """Chi-square of walks against the law of (last node, next token)."""

    @jax.jit
    def both(key):
        p, laws = drafted(tree, make)
        keys = jax.random.split(key, DRAWS)
        walk = jax.vmap(lambda key: rule.walk(key, tree, TOKENS, p, laws))(keys)
        return walk, rule.law(tree, TOKENS, p, laws)

    walk, decision = both(jax.random.key(0))
    last = np.asarray(walk.nodes.max(axis=1))
    np.testing.assert_array_equal(tree.depths[last], walk.accept_length)
    seen = np.bincount(last * 3 + np.asarray(walk.next_token), minlength=21)
    law = np.asarray(decision.stop[:, None] * decision.next, np.float64).reshape(-1)
    assert law.sum() == pytest.approx(1, abs=1e-5)
    possible = law > 1e-6
    assert not seen[~possible].any()
    expected = law[possible] / law[possible].sum() * DRAWS
    return chisquare(seen[possible], expected).pvalue


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("recursive-rejection", gr.IID),
        pytest.param(
            "recursive-rejection", gr.WithoutReplacement, marks=pytest.mark.sweep
        ),
        pytest.param("global-resolution", gr.IID, marks=pytest.mark.sweep),
    ],
)
def test_walks_follow_the_law(rule, make):
    assert p_value(TopDown(gr.verifiers.by_name(rule)), make) > 1e-4


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (LayerResolution(), gr.IID),
        pytest.param(Traversal(), gr.IID, marks=pytest.mark.sweep),
        (Traversal(), gr.WithoutReplacement),
    ],
)
def test_walks_of_rules_for_trees_do(rule, make):
    assert p_value(rule, make) > 1e-4


def test_walks_of_a_selected_path_do():
    """With equal nodes on the path, of which either may be selected."""
    assert p_value(GreedyMultiPathBlock(), gr.IID, gr.tree.branching((2, 2))) > 1e-4


class WalksByAnotherRow(TopDown):
    """Mutant: walks as if the last two tokens of the vocabulary were exchanged."""

    def walk(self, key, tree, tokens, p, laws):
        return super().walk(key, tree, tokens, p[:, jnp.array([0, 2, 1])], laws)


def test_a_walk_of_another_law_is_caught():
    assert p_value(WalksByAnotherRow(gr.verifiers.TargetSample()), gr.IID) < 1e-9


def test_a_rule_for_trees_stays_what_it_is():
    rule = TopDown(gr.verifiers.TargetSample())
    assert as_tree_verifier(rule) is rule
    assert as_tree_verifier(gr.verifiers.TargetSample()) == rule
