import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.tree import tree_mask


def test_paths_are_level_by_level():
    tree = gr.paths(2, 3)
    assert tree.num_nodes == 7 and tree.depth == 3
    np.testing.assert_array_equal(tree.parents, [-1, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(tree.depths, [0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(np.flatnonzero(tree.ancestors[6]), [0, 2, 4, 6])


def test_branching_tree():
    tree = gr.tree.branching((1, 2, 2))
    np.testing.assert_array_equal(tree.parents, [-1, 0, 1, 1, 2, 2, 3, 3])
    assert gr.tree.branching(()) == gr.tree.chain(0) == gr.TokenTree((-1,))
    assert gr.tree.chain(0).depth == 0 and gr.tree.chain(0).groups == ()


def test_delayed_branches_after_its_trunk():
    tree = gr.tree.delayed(2, 2, 2)
    np.testing.assert_array_equal(tree.parents, [-1, 0, 1, 2, 2, 3, 4])
    assert gr.tree.delayed(0, 3, 2) == gr.tree.paths(3, 2)
    assert gr.tree.delayed(3, 4, 0) == gr.tree.chain(3)


def test_any_parents_make_a_tree_level_by_level():
    #       root 0, its children 1 and 3, below them 2 and 4, 5
    tree = gr.tree.from_parents([-1, 0, 1, 0, 3, 3])
    np.testing.assert_array_equal(tree.parents, [-1, 0, 0, 1, 2, 2])
    groups = [(g.level, g.nodes.tolist(), g.children.tolist()) for g in tree.groups]
    assert groups == [
        (0, [0], [[1, 2]]),
        (1, [1], [[3]]),
        (1, [2], [[4, 5]]),
    ]


def test_same_prefix_compares_whole_paths():
    tree = gr.paths(3, 2)
    #                     root  a  b  a   c  c  c
    same = tree.same_prefix(jnp.array([9, 1, 2, 1, 5, 5, 5]))
    assert bool(same[1, 3]) and not bool(same[1, 2])
    assert bool(same[4, 6]) and not bool(same[4, 5])  # a-c and a-c, but not b-c
    assert not bool(same[0, 1])


def test_mask_shows_committed_slots_and_ancestors():
    tree = gr.paths(2, 2)
    see = jax.jit(tree_mask, static_argnums=(0, 3))
    mask = np.asarray(see(tree, np.array([0, 4]), np.array([3, 0]), 9))
    np.testing.assert_array_equal(np.flatnonzero(mask[0, 0]), [0, 1, 2, 3])
    np.testing.assert_array_equal(np.flatnonzero(mask[0, 1]), [0, 1, 2, 3, 5, 7])
    np.testing.assert_array_equal(np.flatnonzero(mask[1, 1]), [0, 2, 4])


def test_bad_trees_are_named():
    with pytest.raises(ValueError, match="num_paths: must be at least 1, got 0"):
        gr.paths(0, 3)
    with pytest.raises(ValueError, match="length: must be 0 or more"):
        gr.paths(1, -1)
    with pytest.raises(ValueError, match="branching: level 1 has 0 children"):
        gr.tree.branching((2, 0))
    with pytest.raises(ValueError, match="trunk: must be 0 or more"):
        gr.tree.delayed(-1, 2, 2)
    with pytest.raises(ValueError, match="parents: node 1 has parent 2, allowed are 0"):
        gr.tree.from_parents([-1, 2, 1])
    with pytest.raises(ValueError, match="parents: node 0 is the root"):
        gr.TokenTree((0, 0))
    with pytest.raises(ValueError, match="must be numbered level by level"):
        gr.TokenTree((-1, 0, 1, 0))
