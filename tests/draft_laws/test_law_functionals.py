import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial, distributions, draft_laws

import globalres_jax as gr
from globalres_jax.transport.iid_race import pick_law, race_weights
from globalres_jax.transport.plan import law_problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

LAWS = ["iid", "independent", "deterministic", "without replacement", "top plus sample"]


_laplace = jax.jit(lambda law, u: law.laplace(u))
_moments = jax.jit(lambda law, survive: law.moments(survive))
_escape = jax.jit(lambda law, order: law.escape(order))
_containment = jax.jit(lambda law, members: law.containment(members))


def enumerated(law):
    """Tuples [N, n] and their probabilities [N]."""
    drafts = gr.testing.draft_tuples(law)
    return np.asarray(drafts), np.asarray(jax.vmap(law.draft_probability)(drafts))


@pytest.mark.parametrize("name", LAWS)
def test_tuples_follow_the_law(name):
    """20,000 draws; every tuple within five standard errors of its probability."""
    q = np.array([0.05, 0.4, 0.0, 0.25, 0.3])
    law = draft_laws(q, 3)[name]
    drafts, chance = enumerated(law)
    keys = jax.random.split(jax.random.key(1), 20_000)
    sampled = np.asarray(jax.vmap(law.sample)(keys))
    assert sampled.dtype == np.int32 and sampled.shape == (20_000, 3)
    seen = np.bincount(sampled @ [25, 5, 1], minlength=125) / 20_000
    bound = 5 * np.sqrt(chance * (1 - chance) / 20_000) + 1e-5
    assert np.all(np.abs(seen - chance)[drafts @ [25, 5, 1]] <= bound)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_functionals_are_the_enumerated_ones(name, n, float64):
    """Laplace functional, its gradient, containment, escape of all prefixes."""
    rng = np.random.default_rng(n)
    pairs = [q for _, q in distributions(5, seed=n, count=2)]
    pairs += [q for _, q in adversarial(5).values()]
    for q in pairs:
        laws = draft_laws(q, n)
        if name not in laws:
            continue
        law = laws[name]
        drafts, chance = enumerated(law)
        assert chance.sum() == pytest.approx(1, abs=1e-12)
        u = rng.exponential(size=5)
        weighted = chance * np.exp(-u[drafts].sum(1))
        assert float(_laplace(law, u)) == pytest.approx(weighted.sum())
        counts = (drafts[:, :, None] == np.arange(5)).sum(1)
        moments = _moments(law, np.exp(-u)[None])
        np.testing.assert_allclose(moments.mean[0], weighted @ counts, atol=1e-9)
        order = rng.permutation(5)
        for size, escape in enumerate(np.asarray(_escape(law, order))):
            inside = chance[np.isin(drafts, order[:size]).all(1)].sum()
            assert escape == pytest.approx(1 - inside, abs=1e-9), (q, order, size)
            members = jnp.zeros(5, bool).at[order[:size]].set(True)
            assert float(_containment(law, members)) == pytest.approx(inside, abs=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_second_moments_are_the_enumerated_ones(name, float64):
    _, q = next(distributions(5, seed=4, count=1))
    law = draft_laws(np.asarray(q) * 0.9 + 0.02, 2)[name]
    drafts, chance = enumerated(law)
    u = np.random.default_rng(0).exponential(size=5)
    weighted = chance * np.exp(-u[drafts].sum(1))
    counts = (drafts[:, :, None] == np.arange(5)).sum(1)
    exact = np.einsum("k,ki,kj->ij", weighted, counts, counts)
    assert law.exact_moments
    moments = law.moments(jnp.exp(-jnp.asarray(u))[None])
    plus, minus = moments.plus[:, 0], moments.minus[:, 0]
    ours = jnp.diag(moments.diagonal[0]) + plus.T @ plus - minus.T @ minus
    np.testing.assert_allclose(ours, exact, atol=1e-12)


def test_equal_drafters_are_iid_and_one_draft_is_one_draft(float64):
    _, q = next(distributions(6, seed=8, count=1))
    u = jnp.linspace(0, 2, 6)
    same = gr.Independent(np.stack([q, q, q]))
    assert float(same.laplace(u)) == pytest.approx(float(gr.IID(q, 3).laplace(u)))
    for law in (gr.WithoutReplacement(q, 1), gr.TopPlusSample(q, 1)):
        assert float(law.laplace(u)) == pytest.approx(float(gr.IID(q, 1).laplace(u)))


def test_a_support_too_small_under_jit_drafts_what_there_is(float64):
    """Nobody can count there: the lacking drafts are NO_TOKEN, and nothing is lossy."""
    p, q = jnp.array([0.3, 0.3, 0.4]), jnp.array([0.6, 0.4, 0.0])
    for make, expected in (
        (gr.WithoutReplacement, {(0, 1, -1), (1, 0, -1)}),
        (gr.TopPlusSample, {(0, 1, -1)}),
    ):

        @jax.jit
        def outcomes(p, q, key, make=make):
            law = make(q, 3)
            drafts = law.sample(key)
            return drafts, gr.verifiers.GlobalResolution().decide(p, law, drafts)

        drafts, decision = outcomes(p, q, jax.random.key(0))
        assert tuple(np.asarray(drafts).tolist()) in expected
        # Whatever the order, the same set is drafted: the emitted law must be p.
        emitted = decision.residual.at[drafts].add(decision.accept)
        np.testing.assert_allclose(emitted, p, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda q: gr.WithoutReplacement(q, 3), "num_drafts: 3 different drafts, but"),
        (lambda q: gr.TopPlusSample(q, 3), "num_drafts: 3 different drafts, but only"),
        (lambda q: gr.WithoutReplacement(q, 0), "num_drafts: must be at least 1"),
        (lambda q: gr.WithoutReplacement(q, 1, 1), "max_support: 2 tokens of probs"),
        (lambda q: gr.Independent(q), "probs: expected a non-empty array of 2"),
        (lambda q: gr.Independent(q[None], 1), "max_support: 2 tokens of a row"),
        (lambda q: gr.Deterministic(q, 3), "tokens: expected integers"),
        (lambda q: gr.Deterministic([1, 1], 3), "tokens: must be different"),
        (lambda q: gr.Deterministic([1, 3], 3), r"tokens: must lie in \[0, 3\)"),
        (lambda q: gr.Deterministic([[1]], 3), r"tokens: expected shape \[n\]"),
    ],
)
def test_laws_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.array([0.5, 0.5, 0.0]))


def test_samples_follow_the_law():
    _, q = next(distributions(5, seed=0, count=1))
    law = gr.IID(jnp.asarray(q, jnp.float32), 3)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drafts = np.asarray(jax.vmap(law.sample)(keys))
    assert drafts.shape == (20_000, 3) and drafts.dtype == np.int32
    for slot in range(3):
        seen = np.bincount(drafts[:, slot], minlength=5) / 20_000
        assert np.all(np.abs(seen - q) <= 5 * np.sqrt(q * (1 - q) / 20_000) + 1e-9)


def test_probability_of_tuples_sums_to_one_and_gives_containment(float64):
    _, q = next(distributions(4, seed=1, count=1))
    law = gr.IID(jnp.asarray(q), 3)
    drafts = gr.testing.draft_tuples(law)
    chance = np.asarray(jax.vmap(law.draft_probability)(drafts))
    assert chance.sum() == pytest.approx(1)
    members = jnp.array([True, False, True, False])
    inside = np.asarray(members[drafts].all(1))
    assert float(law.containment(members)) == pytest.approx(chance[inside].sum())
    u = jnp.array([0.3, 1.0, 0.0, 2.0])
    expected = (chance * np.exp(-np.asarray(u)[drafts].sum(1))).sum()
    assert float(law.laplace(u)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["deterministic", "top plus sample"])
def test_closed_forms_are_what_the_solver_finds(name, float64):
    solver = gr.ProjectedNewton()
    for p, q in [*distributions(6, 3, 3), *adversarial(6).values()]:
        law = draft_laws(q, 3).get(name)
        if law is None:
            continue
        p = jnp.asarray(p)
        closed = law.closed_form(p)
        problem, start = law_problem(p, law)
        solved = solver.run(start, problem)
        pick = pick_law(problem, race_weights(problem, solved.params))
        rates = [float(jnp.minimum(p, beta).sum()) for beta in (closed.pick, pick)]
        assert rates[0] >= rates[1] - 1e-6
        assert rates[0] == pytest.approx(rates[1], abs=1e-5)
        assert float(closed.excess) == pytest.approx(float(problem.excess), abs=1e-9)
        # Its pick law is the integral's, for its weights.
        np.testing.assert_allclose(
            closed.pick, pick_law(problem, jnp.minimum(closed.weights, 2e10)), atol=1e-6
        )


def test_closed_forms_in_float32_over_a_large_vocabulary():
    rng = np.random.default_rng(0)
    logits = -1.2 * np.log(np.arange(1, 20_001)) + rng.normal(size=(2, 20_000))
    p, q = (jnp.asarray(x, jnp.float32) for x in jax.nn.softmax(logits))
    q = jnp.where(q >= jnp.sort(q)[-500], q, 0)
    law = gr.TopPlusSample(q / q.sum(), 4, max_support=500)
    plan = gr.solve_transport(p, law)
    assert int(plan.iterations) == 0 and float(plan.gap) <= 1e-6
    best = gr.verifiers.GreedyDraft().acceptance_rate(p, law)
    assert float(plan.acceptance_rate) == pytest.approx(float(best), abs=2e-6)


def test_number_of_drafts_is_shape_or_data():
    q = jnp.array([0.5, 0.5])
    traced = jax.jit(lambda n: gr.IID(q, n).containment(jnp.array([True, False])))
    assert float(traced(1)) == 0.5 and float(traced(3)) == 0.125
    leaves, tree = jax.tree.flatten(gr.IID(q, 2))
    assert len(leaves) == 1
    assert jax.tree.unflatten(tree, leaves).num_drafts == 2
    with pytest.raises(ValueError, match="num_drafts: sample needs a Python int"):
        jax.jit(lambda n: gr.IID(q, n).sample(jax.random.key(0)))(2)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.5, np.nan], "probs: contains NaN"),
        ([1.5, -0.5], "probs: contains the negative value -0.5"),
        ([0.0, 0.0], "probs: is zero everywhere"),
        ([2.0, 1.0], "probs: sums to 3"),
        ([[0.5, 0.5]], r"probs: expected a non-empty array of 1 .* shape \(1, 2\)"),
        ([1, 0], "probs: expected floating point"),
    ],
)
def test_bad_probabilities_are_named(probs, message):
    with pytest.raises(ValueError, match=message):
        gr.IID(np.array(probs), 2)


def test_bad_options_are_named():
    q = jnp.array([0.5, 0.5])
    with pytest.raises(ValueError, match="num_drafts: must be at least 1, got 0"):
        gr.IID(q, 0)
    with pytest.raises(ValueError, match=r"num_drafts: expected an integer, got 1\.5"):
        gr.IID(q, 1.5)
    with pytest.raises(ValueError, match="max_support: 2 tokens of probs are above"):
        gr.IID(q, 2, max_support=1)
    with pytest.raises(ValueError, match="max_support: must be at least 1"):
        gr.IID(q, 2, max_support=0)
