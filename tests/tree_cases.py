"""Small pairs of target and draft, as tables, for the tests of rules for trees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.testing import joint_law, random_tables, step_law

VOCAB_SIZE = 3
RAGGED = gr.tree.from_parents([-1, 0, 0, 1, 1, 2])
TARGET, DRAFT = (random_tables(np.random.default_rng(i), VOCAB_SIZE, 3) for i in (0, 1))
# A target that rules some texts out.
TARGET[1][0] = [0.0, 1.0, 0.0]


@functools.cache
def _stacked(make, num_drafts):
    return jax.jit(jax.vmap(lambda q: make(q, num_drafts)))


def drafts(tables, make):
    """The laws after every text of a level, by `make(q, n)`, or one for each level."""

    def draft(level, num_drafts):
        of = make[level] if isinstance(make, tuple) else make
        return _stacked(of, num_drafts)(np.asarray(tables[level]))

    return draft


def iid(tables):
    return drafts(tables, gr.IID)


def independent(q, num_drafts):
    """Different drafters: rotations of one."""
    return gr.Independent(jnp.stack([jnp.roll(q, i) for i in range(num_drafts)]))


def deviation(rule, tree, make=gr.IID, pair=(TARGET, DRAFT)):
    """Largest difference of the step's law from the target's."""
    target, draft = pair
    tables = target[: tree.depth + 1]
    law = np.asarray(step_law(rule, tree, tables, drafts(draft, make)))
    assert law.sum() == pytest.approx(1, abs=1e-9)
    return np.abs(law - joint_law(tables)).max()


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


def drafted(tree, seed):
    """Tokens, rows of p and laws of one tree, equal nodes with equal rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB_SIZE, tree.num_nodes)
    same = np.asarray(jax.jit(tree.same_prefix)(tokens)).argmax(1)
    p, q = rng.dirichlet(np.full(VOCAB_SIZE, 0.8), (2, tree.num_nodes))[:, same]
    laws = tuple(
        _stacked(gr.IID, group.num_children)(q[group.nodes]) for group in tree.groups
    )
    return tokens, jnp.asarray(p), laws
