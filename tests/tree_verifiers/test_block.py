"""Block verification: exactly lossless, and longer runs than token by token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import globalres_jax as gr
from globalres_jax.base import TreeDecision
from globalres_jax.testing import joint_law, random_tables, step_law
from globalres_jax.transforms import normalized_residual
from globalres_jax.tree_verifiers import Block, TopDown
from globalres_jax.tree_verifiers import block as block_module

LENGTH, VOCAB_SIZE = 3, 3
TREE = gr.tree.chain(LENGTH)
TARGET, DRAFT = (
    random_tables(np.random.default_rng(i), VOCAB_SIZE, LENGTH) for i in (2, 3)
)
TARGET[1][0] = [0.0, 1.0, 0.0]
# Where target and draft agree the residual is empty.
TARGET[2][4] = DRAFT[2][4]


def single(level, num_drafts):
    return jax.vmap(lambda q: gr.IID(q, num_drafts))(jnp.asarray(DRAFT[level]))


def test_a_block_has_the_law_of_the_target(float64):
    law = step_law(Block(), TREE, TARGET, single)
    np.testing.assert_allclose(law, joint_law(TARGET), atol=1e-9)


class UncappedRatioAtTheEnd(Block):
    """Mutant: the last draft is accepted by the ratio of the whole, not cut anywhere.

    As in the released code of hierarchical speculative decoding.
    """

    def law(self, tree, tokens, p, laws):
        ends, rest = block_module._ends(tokens, p, laws)
        q = jnp.stack([law.token_probs[0] for law in laws])
        at = jnp.arange(LENGTH), tokens[1:]
        ends = ends.at[-1].set(jnp.minimum(1, jnp.prod(p[at] / q[at])))
        chance = block_module.chance_of_last(ends)
        return TreeDecision(chance, normalized_residual(rest, p))


def test_mutant_uncapped_ratio_is_caught(float64):
    law = step_law(UncappedRatioAtTheEnd(), TREE, TARGET, single)
    assert float(jnp.abs(law - joint_law(TARGET)).max()) > 1e-3


def expected_length(rule):
    """Mean number of accepted drafts, over all paths that can be drafted."""
    total = 0.0

    @jax.jit
    def mean(tokens, p, q):
        laws = tuple(jax.tree.map(lambda x: x[None], gr.IID(row, 1)) for row in q)
        return rule.law(TREE, tokens, p, laws).stop @ jnp.arange(LENGTH + 1.0)

    for path in itertools.product(range(VOCAB_SIZE), repeat=LENGTH):
        text, rows, chance = 0, [0], 1.0
        for level, token in enumerate(path):
            chance *= DRAFT[level][text, token]
            text = text * VOCAB_SIZE + token
            rows.append(text)
        p = jnp.stack([jnp.asarray(TARGET[d][row]) for d, row in enumerate(rows)])
        q = jnp.stack([jnp.asarray(DRAFT[d][rows[d]]) for d in range(LENGTH)])
        total += chance * float(mean(jnp.array([0, *path]), p, q))
    return total


def test_it_accepts_longer_runs_than_token_by_token(float64):
    alone = expected_length(TopDown(gr.verifiers.SingleDraft()))
    assert expected_length(Block()) > alone + 0.01


def p_value_of_text(config):
    """Chi-square of three tokens of text against the target's law."""
    rows = 6000
    table, other = (
        np.random.default_rng(i).dirichlet(np.full(3, 0.7), 3) for i in (0, 1)
    )
    pair = [
        gr.testing.markov_model(jnp.asarray(x, jnp.float32)) for x in (table, other)
    ]
    prompts, lengths = jnp.zeros((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32)
    result = gr.generate(jax.random.key(0), *pair, prompts, lengths, config, 3)
    seen = np.bincount(np.asarray(result.tokens) @ [9, 3, 1], minlength=27)
    law = np.einsum("a,ab,bc->abc", table[0], table, table).reshape(-1)
    return chisquare(seen, rows * law).pvalue


def test_text_of_a_block_is_the_target_s():
    config = gr.SpeculativeConfig(tree=TREE, verifier=Block(), measure_optimum=False)
    assert p_value_of_text(config) > 1e-4


def test_a_tree_that_branches_is_refused():
    with pytest.raises(ValueError, match="tree: Block verifies one path, got a level"):
        gr.SpeculativeConfig(num_drafts=2, verifier=Block())
