"""Text is exactly the target's: through the real loop, batched and ragged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from markov_pairs import (
    CONFIGS,
    ROWS,
    TARGET,
    TEMPERATURE,
    three_tokens,
)
from mutants import ResidualFromTarget
from scipy import stats

import globalres_jax as gr
from globalres_jax.decoding import scoring, step


def worst_chi_square_p_value(pair, config, rows=ROWS) -> float:
    """Joint law of three tokens after two prompts, against the target's."""
    result, half = three_tokens(*pair, config, rows), rows // 2
    chain = TARGET ** (1 / TEMPERATURE)
    chain = chain / chain.sum(1, keepdims=True)
    p_values = []
    for part, start in ((slice(0, half), 1), (slice(half, None), 2)):
        text = np.asarray(result.tokens[part])
        seen = np.bincount(text @ [9, 3, 1], minlength=27)
        law = chain[start][:, None, None] * chain[:, :, None] * chain[None]
        p_values.append(stats.chisquare(seen, half * law.reshape(-1)).pvalue)
    return min(p_values)


#: Two-sided probability of 5 standard errors.
FIVE_SIGMA = 5.7e-7


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.sweep)
        if "likeliest" in name or name == "recursive"
        else name
        for name in CONFIGS
    ],
)
def test_joint_law_of_three_tokens(pair, name):
    assert worst_chi_square_p_value(pair, CONFIGS[name]) > 1e-3


def of_its_own(name: str, pad_id: int) -> gr.SpeculativeConfig:
    """One of `CONFIGS`, padded in a way of its own: nobody shares a patched program."""
    return dataclasses.replace(CONFIGS[name], pad_id=pad_id)


def test_mutant_one_key_for_draft_and_verification(pair, monkeypatch):
    config = of_its_own("single", -2)

    def reused(keys, steps):
        keys = jax.vmap(jax.random.fold_in)(keys, steps)
        return keys, keys

    monkeypatch.setattr(step, "step_keys", reused)
    with pytest.raises(jax.errors.KeyReuseError):
        worst_chi_square_p_value(pair, config)
    with jax.debug_key_reuse(False):
        assert worst_chi_square_p_value(pair, config) < FIVE_SIGMA


@pytest.mark.sweep  # enumerated for single positions and for trees anyway
def test_mutant_residual_from_the_target(pair):
    rule = ResidualFromTarget()
    config = dataclasses.replace(
        CONFIGS["global"], verifier=rule, measure_optimum=False
    )
    assert worst_chi_square_p_value(pair, config) < FIVE_SIGMA


def test_mutant_bonus_token_without_temperature(pair, monkeypatch):
    honest = scoring.score

    def cold_leaves(cache, tokens, request):
        logits, cache = honest(cache, tokens, request)
        leaves = request.config.token_tree.num_children == 0
        # The temperature divides them again.
        return jnp.where(leaves[None, :, None], TEMPERATURE * logits, logits), cache

    monkeypatch.setattr(scoring, "score", cold_leaves)
    config = of_its_own("recursive", -2)
    assert worst_chi_square_p_value(pair, config, 6000) < FIVE_SIGMA


@pytest.mark.sweep
def test_mutant_draft_law_that_was_not_sampled(pair, monkeypatch):
    honest = step.propose

    def claims_flat_rows(*args):
        proposal, state = honest(*args)
        flat = jax.tree.map(lambda q: jnp.full_like(q, 1 / q.shape[-1]), proposal.laws)
        return proposal._replace(laws=flat), state

    monkeypatch.setattr(step, "propose", claims_flat_rows)
    config = of_its_own("recursive", -3)
    assert worst_chi_square_p_value(pair, config) < FIVE_SIGMA
