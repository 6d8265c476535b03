import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.tree import tree_mask


def test_paths_are_level_by_level():
    tree = gr.paths(2, 3)
    assert tree.num_nodes == 7 and tree.num_internal == 5 and tree.depth == 3
    np.testing.assert_array_equal(tree.parents, [-1, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(tree.depths, [0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(np.flatnonzero(tree.ancestors[6]), [0, 2, 4, 6])


def test_branching_tree():
    tree = gr.TokenTree((1, 2, 2))
    np.testing.assert_array_equal(tree.parents, [-1, 0, 1, 1, 2, 2, 3, 3])
    assert tree.num_internal == 4
    assert gr.TokenTree(()).num_nodes == 1 and gr.TokenTree(()).depth == 0


def test_same_prefix_compares_whole_paths():
    tree = gr.paths(3, 2)
    #                     root  a  b  a   c  c  c
    same = tree.same_prefix(jnp.array([9, 1, 2, 1, 5, 5, 5]))
    assert bool(same[1, 3]) and not bool(same[1, 2])
    assert bool(same[4, 6]) and not bool(same[4, 5])  # a-c and a-c, but not b-c
    assert not bool(same[0, 1])


def test_mask_shows_committed_slots_and_ancestors():
    tree = gr.paths(2, 2)
    mask = tree_mask(tree, np.array([0, 4]), jnp.array([3, 0]), 9)
    np.testing.assert_array_equal(np.flatnonzero(mask[0, 0]), [0, 1, 2, 3])
    np.testing.assert_array_equal(np.flatnonzero(mask[0, 1]), [0, 1, 2, 3, 5, 7])
    np.testing.assert_array_equal(np.flatnonzero(mask[1, 1]), [0, 2, 4])


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="num_drafts: must be at least 1, got 0"):
        gr.paths(0, 3)
    with pytest.raises(ValueError, match="draft_length: must be 0 or more"):
        gr.paths(1, -1)
    with pytest.raises(ValueError, match="branching: level 1 has 0 children"):
        gr.TokenTree((2, 0))
