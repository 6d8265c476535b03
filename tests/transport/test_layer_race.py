"""The race of a layer, against enumeration and automatic differentiation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.transport.hessian import solve_identity_minus
from globalres_jax.transport.layer_curvature import LayerCurvature
from globalres_jax.transport.layer_drafts import SingleDrafts
from globalres_jax.transport.layer_plan import solve_layer
from globalres_jax.transport.layer_race import LayerRace
from globalres_jax.transport.race import acceptance_gap

SIZE = 3
_pick_law = jax.jit(lambda race, weights: race.pick_law(weights))
_curvature = jax.jit(lambda race, weights: race.curvature(weights))
_slope = jax.jit(jax.grad(lambda a, race: race.dual_objective(a)))
_pick_slopes = jax.jit(jax.jacfwd(lambda a, race: race.pick_law(jnp.exp(a))))
_solve = jax.jit(solve_layer, static_argnames="solver")


def problem(seed, dtype, counts=(2, 0, 1)):
    """A layer of three nodes, of which one has no drafts; a token without mass."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts)
    p, q = rng.dirichlet(np.full(SIZE, 0.7), (2, len(counts)))
    share = rng.dirichlet(np.ones(len(counts) + 1))[:-1]
    target = share[:, None] * p
    target[0, 0] = 0
    return target.astype(dtype), q.astype(dtype), counts


def race_and_weights(seed, dtype, counts=(2, 0, 1), most=20.0):
    target, q, counts = problem(seed, dtype, counts)
    alive = (counts > 0)[:, None]
    target = np.where(alive, target, 0).reshape(-1).astype(dtype)
    rest = 1 - target.sum()
    race = LayerRace(target, SingleDrafts(q), counts.astype(dtype), rest)
    race = jax.tree.map(jnp.asarray, race)
    rng = np.random.default_rng(seed)
    return race, rng.uniform(-8, most, target.shape).astype(dtype)


def enumerated_pick_law(race, weights):
    """beta by summing over all drafts of all nodes."""
    counts = np.asarray(race.counts, int)
    q = np.asarray(race.q, float).reshape(len(counts), -1)
    owner = np.repeat(np.arange(len(counts)), counts)
    beta = np.zeros(q.size)
    for drawn in itertools.product(range(q.shape[1]), repeat=len(owner)):
        slots = owner * q.shape[1] + np.asarray(drawn)
        picked = np.asarray(weights, float)[slots]
        chance = np.prod(q[owner, drawn])
        np.add.at(beta, slots, chance * picked / (1 + picked.sum()))
    return beta


@pytest.mark.parametrize("counts", [(2, 0, 1), (1, 1, 2)])
def test_pick_law_is_the_enumerated_one(counts, float64):
    race, a = race_and_weights(0, jnp.float64, counts)
    beta = enumerated_pick_law(race, np.exp(a))
    np.testing.assert_allclose(_pick_law(race, np.exp(a)), beta, atol=1e-12)


def test_pick_law_in_float32():
    race, a = race_and_weights(1, jnp.float32)
    beta = enumerated_pick_law(race, np.exp(a))
    np.testing.assert_allclose(_pick_law(race, np.exp(a)), beta, atol=1e-6)


def test_gradient_and_hessian_of_the_dual(float64):
    race, a = race_and_weights(2, jnp.float64, (1, 3, 2), most=5.0)
    curve = _curvature(race, np.exp(a))
    np.testing.assert_allclose(curve.pick, _pick_law(race, np.exp(a)), atol=1e-12)
    np.testing.assert_allclose(_slope(a, race), curve.pick - race.p, atol=1e-9)
    coupling = jax.jit(lambda curve, root: curve.coupling(root))
    hessian = np.diag(curve.diagonal) - coupling(curve, np.ones_like(a))
    numeric = _pick_slopes(a, race)
    # On half of the nodes, but its row sums are exact.
    np.testing.assert_allclose(hessian, numeric, atol=1e-6)
    np.testing.assert_allclose(hessian.sum(1), numeric.sum(1), atol=1e-11)


def test_nodes_are_eliminated_one_by_one(float64):
    """Many slots and few quadrature nodes: small systems solve the large one."""
    rng = np.random.default_rng(0)
    nodes, parts, size = 5, 3, 8
    counts = np.array([1.0, 3.0, 2.0])
    half = rng.uniform(0, 0.3, (nodes, parts))
    curve = LayerCurvature(
        pick=jnp.zeros(parts * size),
        diagonal=jnp.zeros(parts * size),
        rows=jnp.asarray(rng.uniform(0, 1, (parts, nodes, size))),
        together=jnp.asarray(counts * half),
        alone=jnp.asarray(np.sqrt(counts) * half),
        scale=jnp.asarray(rng.uniform(0, 0.3, (parts, size))),
    )
    root, right = rng.uniform(0, 1, (2, parts * size))

    @jax.jit
    def both(curve, root, right):
        exact = solve_identity_minus(curve.coupling(root), right)
        return curve.solve_scaled(root, right), exact

    found, exact = both(curve, root, right)
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_solutions_are_optimal(float64):
    """The certificate of every one, and no reject slot where there is one draft."""
    solver = gr.ProjectedNewton(maxiter=40, tol=1e-8)
    for seed in range(6):
        target, q, counts = problem(seed, jnp.float64)
        solution = _solve(target, SingleDrafts(q), counts, solver)
        assert -1e-9 < float(solution.gap) <= 1e-8
        assert float(solution.reject) == 1
    target, q, counts = problem(0, jnp.float64, (0, 0, 1))
    solution = _solve(target, SingleDrafts(q), counts, solver)
    assert float(solution.reject) == 0
    np.testing.assert_array_equal(solution.pick, np.asarray(q) * [[0], [0], [1]])


@jax.jit
def gap_of_the_start(race):
    start = race.start_weights()
    pick = race.pick_law(jnp.where(race.p > 0, jnp.exp(start), 0))
    return acceptance_gap(race, start, pick)


def test_the_start_is_near(float64):
    """Without an iteration little is lost, and the certificate says how much."""
    for seed in range(6):
        race, _ = race_and_weights(seed, jnp.float64, (1, 2, 1))
        assert -1e-9 < float(gap_of_the_start(race)) < 0.05


def test_the_optimum_is_differentiable(float64):
    target, q, counts = problem(3, jnp.float64)
    solver = gr.ProjectedNewton(maxiter=40, tol=1e-9)

    @jax.jit
    def accepted(target):
        return jnp.minimum(
            solve_layer(target, SingleDrafts(q), counts, solver).pick, target
        ).sum()

    slope = jax.grad(accepted)(target)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=target.shape) * target
    step = 1e-5
    numeric = accepted(target + step * direction) - accepted(target - step * direction)
    found = np.sum(np.asarray(slope) * direction)
    assert float(found) == pytest.approx(float(numeric) / (2 * step), abs=1e-5)
