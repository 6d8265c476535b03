"""How drafts are drawn: what other draws would have had accepted, and which is best."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.decoding.config import SampledPolicy
from globalres_jax.planning import Draws, Shape
from globalres_jax.planning.draws import CLOCKS_TOP_K, best_draws, open_draws
from globalres_jax.planning.question import of_shape
from globalres_jax.planning.reweighting import (
    added_if_redrawn,
    first_level,
    redrawn,
)
from globalres_jax.tree_verifiers import Block, expected_by_level

V, DEPTH = 4, 3
P, Q = np.random.default_rng(0).dirichlet(np.full(V, 0.8), (2, DEPTH + 1))
PATHS = np.array(list(itertools.product(range(V), repeat=DEPTH)))
AUTO, USUAL = gr.SpeculativeConfig(tree="auto"), Draws()


def test_the_law_of_other_draws():
    q = np.array([[0.5, 0.1, 0.3, 0.1], [0.0, 0.2, 0.0, 0.8]], np.float32)
    other = jax.jit(redrawn)
    np.testing.assert_allclose(other(q, V, 1.0), q, atol=1e-7)
    few = np.asarray(other(q, 2, 1.0))[0]
    np.testing.assert_allclose(few, [0.625, 0, 0.375, 0], atol=1e-7)
    hot = np.sqrt(q) / np.sqrt(q).sum(1, keepdims=True)
    np.testing.assert_allclose(other(q, V, 2.0), hot, atol=1e-6)

    # It is what a draft at that temperature draws from.
    @jax.jit
    def both(logits):
        options = gr.SamplingOptions(temperature=0.8, draft_temperature=1.5)
        config, ends = of_shape(AUTO, Shape(1, 1)), jnp.full((1, 1), -1)
        policy = SampledPolicy(config, options.for_rows(1), V, None, ends)
        cool = gr.SamplingOptions(temperature=0.8).to_probabilities(logits)[0]
        return policy.law(logits, 0, 1).probs[0], redrawn(cool, V, 1.5)

    with np.errstate(divide="ignore"):
        logits = np.log(q[:1, None])
    np.testing.assert_allclose(*both(logits), atol=1e-6)


@pytest.mark.parametrize("top_k", [2, 4])
def test_the_mean_over_paths_is_that_of_the_other_draws(top_k, float64):
    """Of all paths that one draft can draw, against those of the other."""
    tree = gr.tree.chain(DEPTH)
    other = redrawn(jnp.asarray(Q[:DEPTH]), top_k, 1.4)

    @jax.jit
    @jax.vmap
    def both(path):
        p, q = jnp.asarray(P), jnp.asarray(Q[:DEPTH])
        ours = added_if_redrawn(p[:DEPTH], q, path, jnp.asarray(top_k), 1.4)
        laws = tuple(jax.vmap(lambda row: gr.IID(row, 1))(row[None]) for row in other)
        tokens = jnp.concatenate([jnp.zeros(1, path.dtype), path])
        return ours, expected_by_level(Block(), tree, tokens, p, laws)

    ours, theirs = map(np.asarray, both(jnp.asarray(PATHS)))

    def chance(rows):
        return np.take_along_axis(np.asarray(rows)[None], PATHS[..., None], 2).prod(1)

    wanted = chance(other)[:, 0] @ theirs
    np.testing.assert_allclose(chance(Q[:DEPTH])[:, 0] @ ours, wanted, atol=1e-9)
    assert np.ptp(ours[:, 1]) > 0.1


def test_the_first_level_of_several_drafts():
    p, q = (np.asarray(x[:2], np.float32) for x in (P, Q))
    for name, law in (("iid", gr.IID), ("top-plus-sample", gr.TopPlusSample)):
        found = first_level(p, q, 1.0, name=name, num_drafts=2, top_k=V)

        @jax.jit
        @jax.vmap
        def optimum(p, q, law=law):
            return gr.optimal_acceptance_rate(p, law(q, 2))

        rates = np.asarray(optimum(p, q))
        assert float(found) == pytest.approx(np.mean(rates), abs=1e-5)


def test_what_is_named_is_not_open():
    options = AUTO.sampling.for_rows(2)

    def found(changes, options=options, vocab_size=50_000, usual=USUAL):
        config = gr.SpeculativeConfig(tree="auto", **changes)
        return open_draws(config, options, vocab_size, usual)

    everything = found({})
    assert everything[0] == Draws() and len(everything) == len({*everything}) == 9
    assert found({}, usual=Draws(64, 1.3))[0] == Draws(64, 1.3)
    assert {d.top_k for d in found({"draft_top_k": 7})} == {7}
    assert {d.temperature for d in found({"draft_temperature": 1.0})} == {1.0}
    # More than all tokens are all.
    assert {d.top_k for d in found({}, vocab_size=200)} == {64, 256}
    rows = gr.SamplingOptions(draft_temperature=0.5).for_rows(2)
    assert {d.temperature for d in found({}, rows)} == {1.0}
    greedy = gr.SamplingOptions(temperature=0.0).for_rows(2)
    assert found({}, greedy) == [Draws(64)]


def test_a_config_takes_the_draws_that_it_leaves_open():
    law = "without-replacement"
    several = of_shape(AUTO, Shape(3, 2), Draws(1024, 0.7, law))
    assert several.law == (gr.WithoutReplacement, gr.IID)
    assert several.draft_top_k == CLOCKS_TOP_K and several.draft_temperature == 0.7
    single = of_shape(AUTO, Shape(1, 2), Draws(1024, 1.0, law))
    assert single == gr.SpeculativeConfig(tree=gr.tree.chain(2), draft_top_k=1024)
    named = gr.SpeculativeConfig(
        tree="auto", law=gr.IID, draft_top_k=9, draft_temperature=1.0
    )
    kept = of_shape(named, Shape(3, 2), Draws(64, 0.7, law))
    assert (kept.law, kept.draft_top_k, kept.draft_temperature) == (gr.IID, 9, 1.0)


def test_other_draws_must_be_better_for_sure():
    rng = np.random.default_rng(0)
    usual = rng.random(100)
    better, luck = usual + 0.3, usual + 0.05 + rng.standard_normal(100)
    rows = np.stack([usual, luck, better])
    assert best_draws(rows, [1.0, 1.0, 1.0]) == 2
    assert best_draws(rows[:2], [1.0, 1.0]) == 0
    # Where it costs what it gains, it is not worth it.
    assert best_draws(rows, [1.0, 1.0, 1.3]) == 0
    assert best_draws(np.stack([usual, usual]), [1.0, 0.9]) == 1
    assert best_draws(np.stack([usual, usual]), [1.0, 0.995]) == 0
