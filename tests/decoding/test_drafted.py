"""A tree to look at is the one that `generate` drafts first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr

TABLES = np.random.default_rng(0).dirichlet(np.full(4, 0.7), (2, 4))
PROMPTS, LENGTHS = np.array([[1, 2], [3, 0], [0, 1], [2, 2]]), np.array([2, 1, 2, 2])


def test_it_is_what_generate_drafts_first():
    pair = [gr.testing.markov_model(jnp.asarray(x, jnp.float32)) for x in TABLES]
    tree, key = gr.paths(2, 2), jax.random.key(3)
    config = gr.SpeculativeConfig(
        tree=tree, verifier=gr.verifiers.RecursiveRejection(), temperature=0.7
    )
    drafted = gr.draft_tree(key, *pair, PROMPTS, LENGTHS, config)
    assert drafted.tokens.shape == (4, 5) and drafted.p.shape == (4, 5, 4)
    wanted = TABLES[0] ** (1 / 0.7)
    wanted = wanted / wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(drafted.p, wanted[drafted.tokens], atol=1e-6)

    text = gr.generate(key, *pair, PROMPTS, LENGTHS, config, tree.depth + 1, ())
    written = np.asarray(text.tokens)
    walk = jax.jit(config.tree_verifier.walk, static_argnums=1)
    accepted = 0
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        one = drafted.row(row)
        assert one.tokens[0] == prompt[length - 1]
        found = jax.tree.map(np.asarray, walk(one.keys, tree, *one[1:]))
        count = int(found.accept_length)
        said = [*np.asarray(one.tokens)[found.nodes[:count]], found.next_token]
        np.testing.assert_array_equal(written[row, : count + 1], said)
        accepted += count
    assert accepted > 0
    with pytest.raises(ValueError, match="prompt_lengths"):
        gr.draft_tree(key, *pair, PROMPTS, LENGTHS + 1, config)
