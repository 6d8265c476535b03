"""The derivative of the expected accepted length of a drawn tree, by every rule."""

import derivative_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivative_cases import V

import globalres_jax as gr
from globalres_jax.tree_verifiers import (
    Block,
    LayerResolution,
    TopDown,
    Traversal,
    expected_accepted,
)

SOLVED = gr.verifiers.GlobalResolution(solver=gr.ProjectedNewton(tol=1e-10))
LAYER = LayerResolution(maxiter=40, tol=1e-10)
SLOW = pytest.mark.sweep


def length(rule, tree, make):
    """[1] of one tree, whose rows mix p and q with others for each node."""
    # For half of all seeds the optimal rule at each node accepts every draft.
    rng = np.random.default_rng(5)
    tokens = jnp.asarray([0, *rng.integers(0, V, tree.num_nodes - 1)])
    others = 0.5 * rng.dirichlet(np.ones(V), tree.num_nodes)

    def function(p, q):
        laws = []
        for group in tree.groups:
            rows = 0.5 * q[None] + others[(group.nodes + 1) % tree.num_nodes]
            law = jax.vmap(lambda row, group=group: make(row, group.num_children))
            laws.append(law(rows))
        rows = 0.5 * p[None] + others
        return expected_accepted(rule, tree, tokens, rows, tuple(laws))[None]

    return function


@pytest.mark.parametrize(
    ("rule", "tree", "make"),
    [
        (Block(), gr.tree.chain(3), gr.IID),
        pytest.param(
            Traversal(), gr.tree.branching((2, 1)), gr.WithoutReplacement, marks=SLOW
        ),
        pytest.param(Traversal(), gr.paths(2, 2), gr.IID, marks=SLOW),
        pytest.param(TopDown(gr.verifiers.KSeq()), gr.paths(2, 2), gr.IID, marks=SLOW),
        pytest.param(TopDown(SOLVED), gr.paths(2, 2), gr.IID, marks=SLOW),
        (LAYER, gr.paths(2, 2), gr.IID),
        pytest.param(
            LAYER, gr.tree.branching((2, 1)), gr.WithoutReplacement, marks=SLOW
        ),
    ],
)
def test_accepted_length(rule, tree, make, float64):
    derivative_cases.check(length(rule, tree, make))
