"""Bregman transforms: optimal by brute force, safe in float32, lossless in text."""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import globalres_jax as gr
from globalres_jax.commands import generate as command
from globalres_jax.transforms import probabilities

V, MOST = 6, 5
SUPPORTS = np.array(
    [s for s in itertools.product([False, True], repeat=V) if 0 < sum(s) <= MOST]
)


def nearest_on(p, supports, alpha, dual):
    """The best distribution [S, V] on each support, by halving, in float64."""
    s, q = alpha - 1, np.where(supports, p, 1.0)

    def at(nu):
        nu = nu[:, None]
        if not dual:
            with np.errstate(over="ignore"):
                return q * (1 + nu) if s == 0 else (q**s + nu) ** (1 / s)
        low, high = q, np.full_like(q, 2.0)
        for _ in range(45):
            y = (low + high) / 2
            below = y ** (s - 1) * (y - q) < nu
            low, high = np.where(below, y, low), np.where(below, high, y)
        return low

    # Below alpha = 1 the powers fall as p rises, and nu is below zero.
    ones = np.ones(len(supports))
    likeliest = np.where(supports, p, 0).max(1)
    low, high = 0 * ones, ones / p.min() if s == 0 else ones
    if s < 0:
        high = 1 - likeliest**s
    for _ in range(48):
        nu = (low + high) / 2
        short = np.where(supports, at(nu), 0).sum(1) < 1
        low, high = np.where(short, nu, low), np.where(short, high, nu)
    return np.where(supports, at((low + high) / 2), 0)


def divergence(x, y, alpha):
    """Sum over the last axis of D(x, y), where y may be zero if alpha > 1."""
    if alpha == 1:
        logs = np.log(np.where(x > 0, x, 1)) - np.log(y)
        return (x * logs - x + y).sum(-1)
    power = x**alpha / alpha / (alpha - 1) + y**alpha / alpha
    return (power - x * y ** (alpha - 1) / (alpha - 1)).sum(-1)


def cheapest(p, alpha, cost, dual):
    """The optimum over all supports, and what it costs."""
    found = nearest_on(p, SUPPORTS, alpha, dual)
    pair = (p, found) if dual else (found, p)
    costs = divergence(*pair, alpha) + cost * SUPPORTS.sum(1)
    best = costs.argmin()
    return found[best], costs, SUPPORTS.sum(1)


PRIMAL = (0.5, 1.0, 1.0 + 1e-5, 1.5, 2.0, 2.6, 5.0)
DUAL = (1.2, 1.5, 2.6, 5.0)


@pytest.mark.parametrize(
    "dual",
    [
        pytest.param(False, id="primal"),
        pytest.param(True, id="dual", marks=pytest.mark.sweep),
    ],
)
def test_optimal_over_all_supports(float64, dual):
    """Distribution and number of tokens are those of a search through all supports."""
    rng = np.random.default_rng(0)
    cases = []
    for alpha in DUAL if dual else PRIMAL:
        for spread in (0.3, 2.0) if dual else (0.3, 2.0, 20.0):
            p = rng.dirichlet(np.full(V, spread))
            gaps = cheapest(p, alpha, 0.0, dual)[1:]
            least = np.array([gaps[0][gaps[1] == k].min() for k in range(1, MOST + 1)])
            # Convex in k, so that there is a cost for which each k is the best.
            assert np.all(np.diff(least, 2) > -1e-12)
            k = rng.integers(1, MOST - 1)
            cost = (least[k - 1] - least[k + 1]) / 2
            cases += [(p, alpha, cost), (p, alpha, 0.0)]
    p, alpha, cost = map(np.array, zip(*cases, strict=True))
    options = gr.Bregman(alpha=alpha, token_cost=cost, dual=dual)
    found = jax.jit(lambda x, o: probabilities(x, top_k=MOST, bregman=o))(
        np.log(p), options
    )
    sizes = []
    for row, *case in zip(np.asarray(found), p, alpha, cost, strict=True):
        wanted, costs, _ = cheapest(*case, dual)
        np.testing.assert_allclose(row, wanted, atol=2e-9)
        pair = (case[0], row) if dual else (row, case[0])
        reached = divergence(*pair, case[1]) + case[2] * (row > 0).sum()
        assert reached <= costs.min() + 1e-10
        sizes.append(int((row > 0).sum()))
    assert len(set(sizes)) > 2


@pytest.mark.sweep
def test_closed_forms_of_the_paper():
    logits = np.random.default_rng(1).normal(size=(4, 40)).astype(np.float32)
    p = np.exp(np.float64(logits))
    p /= p.sum(1, keepdims=True)
    alpha, top_k = np.array([1.0, 1.5, 2.0, 1.5]), np.array([9, 9, 9, 1])
    found = probabilities(
        logits, 1.0, top_k, max_top_k=9, bregman=gr.Bregman(alpha=alpha)
    )
    np.testing.assert_allclose(found[0], probabilities(logits[0], top_k=9), rtol=2e-6)
    for row, k in ((1, 9), (2, 9), (3, 1)):
        kept = np.argsort(-p[row])[:k]
        own = p[row, kept]
        mass, root = own.sum(), np.sqrt(own).sum()
        nu = (np.sqrt(root**2 + k * (1 - mass)) - root) / k
        wanted = own + (1 - mass) / k if row == 2 else (np.sqrt(own) + nu) ** 2
        np.testing.assert_allclose(found[row, kept], wanted, rtol=1e-5)
        assert int((found[row] > 0).sum()) == k


@pytest.mark.parametrize(
    "dual", [False, pytest.param(True, marks=pytest.mark.sweep)], ids=["primal", "dual"]
)
def test_float32_on_hard_rows(dual):
    """Ties, tokens that cannot be drawn, one-hot rows, far tails, NaN."""
    size, most = 64, 20
    rows = np.zeros((8, size), np.float32)
    rows[1, 3:] = -np.inf  # three tokens alike, and no other
    rows[2, 0] = 200.0  # one-hot to float32
    rows[3] = np.linspace(0, -80, size)
    rows[4, 5] = np.inf
    rows[5, 7] = np.nan
    rows[6, :32] = 5.0
    rows[7] = np.linspace(1, 0, size)
    temperature = np.array([1, 1, 1, 1, 1, 1, 0.5, 0], np.float32)
    run = jax.jit(
        lambda alpha, cost: probabilities(
            rows,
            temperature,
            top_k=most,
            bregman=gr.Bregman(alpha=alpha, token_cost=cost, dual=dual),
        )
    )
    least = 1.001 if dual else 0.3
    for alpha, cost in itertools.product((least, 1.5, 2.0, 9.0, 60.0), (0.0, 1e-3)):
        found = np.asarray(run(np.float32(alpha), np.float32(cost)))
        assert np.isnan(found[5].sum())
        sound = np.delete(found, 5, axis=0)
        np.testing.assert_allclose(sound.sum(1), 1, atol=1e-6)
        assert (sound >= 0).all() and ((sound > 0).sum(1) <= most).all()
        assert (found[1] > 0).sum() <= 3 and found[1, 3:].sum() == 0
        np.testing.assert_array_equal(found[4], np.arange(size) == 5)
        np.testing.assert_array_equal(found[7], np.arange(size) == 0)
        np.testing.assert_allclose(found[2, 0], 1, atol=1e-6)
        # Of equal tokens the first; and likelier ones keep more.
        kept = found[0] > 0
        np.testing.assert_array_equal(kept, np.arange(size) < kept.sum())
        assert np.ptp(found[0, kept]) < 1e-6
        assert (np.diff(found[3]) <= 1e-7).all()
        if not cost:
            assert kept.sum() == (found[6] > 0).sum() == most


@pytest.mark.sweep
def test_a_vocabulary_of_one_token():
    only = probabilities(jnp.zeros((1, 1)), top_k=3, bregman=gr.Bregman())
    np.testing.assert_array_equal(only, [[1]])


@pytest.mark.sweep
@pytest.mark.parametrize("dual", [False, True], ids=["primal", "dual"])
def test_the_derivative_is_that_of_the_kept_tokens(float64, dual):
    rng = np.random.default_rng(3)
    logits, weights = rng.normal(size=(2, 3, 30))
    options = gr.Bregman(alpha=np.array([1.3, 2.0, 3.0]), token_cost=2e-3, dual=dual)

    @jax.jit
    @jax.value_and_grad
    def both(x):
        probs = probabilities(x, 0.7, 12, bregman=options)
        return jnp.sum(weights * probs)

    def value(x):
        return both(x)[0]

    found = both(logits)[1]
    # Along a direction: rows do not know of each other.
    for seed in range(3):
        step = 1e-6 * np.random.default_rng(seed).normal(size=logits.shape)
        wanted = (value(logits + step) - value(logits - step)) / 2
        np.testing.assert_allclose(np.sum(found * step), wanted, rtol=1e-5, atol=1e-13)
    assert np.abs(found).max() > 1e-3


TABLES = np.random.default_rng(5).dirichlet(np.full(4, 0.8), (2, 4))
ROWS, COST = 2000, 0.06


@jax.jit
def apply(logits, top_k, bregman):
    return probabilities(logits, top_k=top_k, max_top_k=3, bregman=bregman)


def transformed(table, alpha, cost, top_k=3):
    numbers = np.float32(alpha), np.float32(cost)
    options = gr.Bregman(alpha=numbers[0], token_cost=numbers[1])
    logits = np.log(table).astype(np.float32)
    probs = np.float64(apply(logits, np.int32(top_k), options))
    return probs / probs.sum(1, keepdims=True)


def test_lossless_for_the_transformed_target():
    """Joint law of three tokens by two alphas; another law is told from it."""
    target, draft = (
        gr.testing.markov_model(jnp.asarray(x, jnp.float32)) for x in TABLES
    )
    half = ROWS // 2
    alpha = np.repeat([1.5, 3.0], half).astype(np.float32)
    cost = np.repeat([COST, 0.0], half).astype(np.float32)
    options = gr.SamplingOptions(
        top_k=np.repeat([3, 2], half),
        bregman=gr.Bregman(alpha=alpha, token_cost=cost),
    )
    rule = gr.tree_verifiers.Block()
    config = gr.SpeculativeConfig(num_drafts=1, draft_length=1, verifier=rule)

    def write(draft):
        prompts = np.ones((ROWS, 1), int)
        key = jax.random.key(0)
        return gr.generate(
            key, target, draft, prompts, prompts[:, 0], config, 3, options=options
        )

    result = write(draft)
    assert 0.3 < float(result.metrics.acceptance_rate.mean()) < 0.95
    counts = [
        np.bincount(np.asarray(part) @ [16, 4, 1], minlength=64)
        for part in (result.tokens[:half], result.tokens[half:])
    ]

    def p_value(seen, table):
        law = (table[1][:, None, None] * table[:, :, None] * table[None]).reshape(-1)
        possible = law > 0
        assert seen[~possible].sum() == 0 or law.min() > 0
        if seen[~possible].sum():
            return 0.0
        return stats.chisquare(seen[possible], half * law[possible]).pvalue

    laws = [transformed(TABLES[0], 1.5, COST), transformed(TABLES[0], 3.0, 0.0, 2)]
    assert {int(n) for n in (laws[0] > 0).sum(1)} >= {2, 3}
    for seen, law in zip(counts, laws, strict=True):
        assert p_value(seen, law) > 1e-3
    # Top-k scaled to 1 is another law.
    assert p_value(counts[1], transformed(TABLES[0], 1.0, 0.0, 2)) < 5.7e-7
    # The same model as a draft: p and q are transformed alike.
    alike = write(target)
    assert float(alike.metrics.acceptance_rate.min()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gr.Bregman(alpha=0.0), "alpha: must be finite, above 0, got 0.0"),
        (lambda: gr.Bregman(alpha=np.nan), "alpha: must be finite, above 0, got nan"),
        (
            lambda: gr.Bregman(alpha=[2.0, 1.0], dual=True),
            "alpha of the dual: must be finite, above 1, got 1.0",
        ),
        (lambda: gr.Bregman(token_cost=-1), "token_cost: must be 0 or more, got -1.0"),
        (lambda: gr.Bregman(alpha="2"), "alpha: expected a number, or one for each"),
        (lambda: gr.Bregman(dual=1), "dual: expected True or False"),
        (
            lambda: gr.SpeculativeConfig(bregman=gr.Bregman()),
            "bregman: needs top_k, the most tokens that it may keep",
        ),
        (
            lambda: gr.SamplingOptions(top_k=5, top_p=0.9, bregman=gr.Bregman()),
            "top_p: not together with bregman",
        ),
        (
            lambda: gr.SpeculativeConfig(top_k=5, min_p=0.1, bregman=gr.Bregman()),
            "min_p: not together with bregman",
        ),
        (
            lambda: gr.SamplingOptions(top_k=5, bregman=1.5),
            r"bregman: expected Bregman\(...\) or None, got 1.5",
        ),
        (
            lambda: gr.SpeculativeConfig(top_k=5, bregman=gr.Bregman(alpha=[1, 2])),
            "bregman.alpha: expected a number",
        ),
        (
            lambda: gr.SamplingOptions(
                top_k=5, bregman=gr.Bregman(alpha=[1, 2])
            ).for_rows(3),
            "alpha: expected a number or 3, one for each row",
        ),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_on_the_command_line():
    def config(*options):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        args = parser.parse_args(["--prompt", "a", *options])
        return command._config(args, "embedded-draft")

    adaptive = ("--top-k", "20", "--bregman", "2", "--token-cost", ".01")
    wanted = gr.Bregman(alpha=2.0, token_cost=0.01, dual=True)
    assert config(*adaptive, "--bregman-dual").bregman == wanted
    assert config("--top-k", "20").bregman is None
    with pytest.raises(ValueError, match="--token-cost: says how --bregman ALPHA"):
        config("--top-k", "20", "--token-cost", ".01")
    with pytest.raises(ValueError, match="bregman: needs top_k"):
        config("--bregman", "2")
