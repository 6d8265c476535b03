import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions

import globalres_jax as gr
from globalres_jax.transport.subset_selection import optimal_threshold


def brute_force(p, q, n):
    """min over all subsets of p(H) + 1 - q(H)^n."""
    masks = np.array(list(itertools.product([0, 1], repeat=len(p))))
    return (masks @ p + 1 - (masks @ q) ** n).min()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_sweep_finds_the_best_of_all_subsets(n, float64):
    for p, q in [*distributions(6, n, 10), *adversarial(6).values()]:
        rate = gr.optimal_acceptance_rate(jnp.asarray(p), gr.IID(jnp.asarray(q), n))
        assert float(rate) == pytest.approx(brute_force(p, q, n), abs=1e-12)


def test_it_is_the_value_of_the_linear_program(float64):
    for p, q in distributions(4, 3, 6):
        p, law = jnp.asarray(p), gr.IID(jnp.asarray(q), 3)
        assert float(gr.optimal_acceptance_rate(p, law)) == pytest.approx(
            gr.testing.linear_program(p, law), abs=1e-9
        )


def test_more_drafts_never_hurt():
    p, q = (jnp.asarray(x, jnp.float32) for x in next(distributions(6, 4, 1)))
    rates = [float(gr.optimal_acceptance_rate(p, gr.IID(q, n))) for n in range(1, 9)]
    assert rates[0] == pytest.approx(float(jnp.minimum(p, q).sum()), abs=1e-6)
    assert np.all(np.diff(rates) >= -1e-6)


def test_gradient_is_the_envelope_theorem(float64):
    """d alpha*/dp = 1[H*] and d alpha*/dq = -n q(H*)^(n-1) 1[H*], by differences."""
    p, q = (jnp.asarray(x) for x in next(distributions(5, 8, 1)))
    n = 3

    def rate(p_logits, q_logits):
        law = gr.IID(jax.nn.softmax(q_logits), n)
        return gr.optimal_acceptance_rate(jax.nn.softmax(p_logits), law)

    point = (jnp.log(p + 0.01), jnp.log(q + 0.01))
    gradient = jax.grad(rate, argnums=(0, 1))(*point)
    for side in range(2):
        for i in range(5):
            shift = [jnp.zeros(5), jnp.zeros(5)]
            shift[side] = shift[side].at[i].set(1e-6)
            up = rate(*(x + s for x, s in zip(point, shift, strict=True)))
            down = rate(*(x - s for x, s in zip(point, shift, strict=True)))
            difference = (up - down) / 2e-6
            assert float(gradient[side][i]) == pytest.approx(
                float(difference), abs=1e-6
            )


def test_bad_targets_are_named():
    law = gr.IID(jnp.array([0.5, 0.5]), 2)
    with pytest.raises(ValueError, match="p: has 3 tokens, the draft law has 2"):
        gr.optimal_acceptance_rate(jnp.array([0.5, 0.25, 0.25]), law)
    with pytest.raises(ValueError, match="p: contains NaN"):
        gr.optimal_acceptance_rate(jnp.array([0.5, jnp.nan]), law)
    with pytest.raises(ValueError, match="p: is zero everywhere"):
        gr.optimal_acceptance_rate(jnp.zeros(2), law)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", [5, 300, 2000])
def test_among_sets_that_tie_all_tokens_are_chosen(size, dtype, both_precisions):
    for seed in range(5):
        # With p = q no set is better than another that the drafts exhaust.
        p = np.random.default_rng(seed).dirichlet(np.ones(size))
        p = jnp.asarray(p, dtype)
        zero, n = jnp.zeros((), dtype), jnp.asarray(3, dtype)
        best = optimal_threshold(p, p, n, 1 - jnp.sum(p), zero)
        assert bool(jnp.all(best.members))
        assert float(best.excess) <= 1e-6
