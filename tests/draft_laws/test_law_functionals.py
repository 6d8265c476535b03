"""What a law says of itself, against the enumeration of its tuples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions, draft_laws

import globalres_jax as gr

LAWS = ["iid", "independent", "deterministic", "without replacement", "top plus sample"]
V = 5


@functools.cache
def tuples(n):
    """[V^n, n] all tuples, and how often each token is in them [V^n, V]."""
    drafts = np.stack(np.meshgrid(*[np.arange(V)] * n, indexing="ij"), -1)
    drafts = drafts.reshape(-1, n).astype(np.int32)
    return drafts, (drafts[:, :, None] == np.arange(V)).sum(1)


# One program for a law and a number of drafts: all that it says of itself.
@jax.jit
def _sayings(law, drafts, u, order, members):
    moments = law.moments(jnp.exp(-u)[None])
    return {
        "chance": jax.vmap(law.draft_probability)(drafts),
        "laplace": law.laplace(u),
        "mean": moments.mean[0],
        "by_draft": moments.by_draft,
        "escape": law.escape(order),
        "containment": jax.vmap(law.containment)(members),
    }


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_functionals_are_the_enumerated_ones(name, n, float64):
    """Laplace functional, its derivatives, containment, escape of all prefixes."""
    rng = np.random.default_rng(n)
    pairs = [q for _, q in distributions(V, seed=n, count=2)]
    pairs += [q for _, q in adversarial(V).values()]
    drafts, counts = tuples(n)
    for q in pairs:
        law = draft_laws(q, n).get(name)
        if law is None:
            continue
        own = np.arange(V) if law.tokens is None else np.asarray(law.tokens)
        u, order = rng.exponential(size=V), rng.permutation(len(own))
        prefixes = np.array([np.isin(range(len(own)), order[:m]) for m in range(V + 1)])
        said = _sayings(law, drafts, u[own], order, prefixes)
        said = jax.tree.map(np.asarray, said)
        chance = said["chance"]
        assert chance.sum() == pytest.approx(1, abs=1e-12)
        weighted = chance * np.exp(-u[drafts].sum(1))
        assert said["laplace"] == pytest.approx(weighted.sum())
        np.testing.assert_allclose(said["mean"], weighted @ counts[:, own], atol=1e-9)
        held = [np.isin(drafts, own[members]).all(1) for members in prefixes]
        inside = np.array([chance[rows].sum() for rows in held])
        escape = 1 - inside[: len(own) + 1]
        np.testing.assert_allclose(said["escape"], escape, atol=1e-9)
        np.testing.assert_allclose(said["containment"], inside, atol=1e-9)
        if said["by_draft"] is not None:
            each = (drafts.T[:, :, None] == own) * weighted[:, None]
            by_draft = said["by_draft"][:, 0]
            np.testing.assert_allclose(by_draft, each.sum(1), atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_tuples_follow_the_law(name):
    """20,000 draws; every tuple within five standard errors of its probability."""
    q = np.array([0.05, 0.4, 0.0, 0.25, 0.3])
    law = draft_laws(q, 3)[name]
    drafts, _ = tuples(3)
    chance = np.asarray(jax.jit(jax.vmap(law.draft_probability))(drafts))
    keys = jax.random.split(jax.random.key(1), 20_000)
    sampled = np.asarray(jax.jit(jax.vmap(law.sample))(keys))
    assert sampled.dtype == np.int32 and sampled.shape == (20_000, 3)
    seen = np.bincount(sampled @ [25, 5, 1], minlength=125) / 20_000
    bound = 5 * np.sqrt(chance * (1 - chance) / 20_000) + 1e-5
    assert np.all(np.abs(seen - chance)[drafts @ [25, 5, 1]] <= bound)


def test_equal_drafters_are_iid_and_one_draft_is_one_draft(float64):
    _, q = next(distributions(V, seed=8, count=1))
    u = jnp.linspace(0, 2, V)
    laplace = jax.jit(lambda law: law.laplace(u))
    same = gr.Independent(np.stack([q, q, q]))
    assert float(laplace(same)) == pytest.approx(float(laplace(gr.IID(q, 3))))
    for law in (gr.WithoutReplacement(q, 1), gr.TopPlusSample(q, 1)):
        assert float(laplace(law)) == pytest.approx(float(laplace(gr.IID(q, 1))))
