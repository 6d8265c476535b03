"""The derivative of a plan, for every law, against finite differences in float64.

Through the optimality condition, not through the loop; closed forms directly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr

V = 6
_RNG = np.random.default_rng(1)
#: Logits of p and of q.
POINT = np.stack([_RNG.normal(size=V), 1.2 * _RNG.normal(size=V)])
READ_OUT = _RNG.normal(size=V)

LAWS = {
    "iid": lambda q: gr.IID(jax.nn.softmax(q), 2),
    "independent": lambda q: gr.Independent(
        jax.nn.softmax(jnp.stack([q, 0.5 * q[::-1]]), axis=-1)
    ),
    "two without replacement": lambda q: gr.WithoutReplacement(jax.nn.softmax(q), 2),
    "three without replacement": lambda q: gr.WithoutReplacement(
        jax.nn.softmax(q), 3, max_support=4
    ),
    "top plus sample": lambda q: gr.TopPlusSample(jax.nn.softmax(q), 2),
    "deterministic": lambda q: gr.Deterministic(jnp.array([2, 0]), V),
}


def read_out(plan):
    """Some function of the weights and of the pick law."""
    bounded = plan.weights / (1 + plan.weights)
    # A weight at the bound stays there.
    inner = jnp.where(plan.weights < 1e6, bounded, 0)
    return jnp.sum(READ_OUT * (inner + plan.pick))


def value(name, solver, logits):
    p, law = jax.nn.softmax(logits[0]), LAWS[name](logits[1])
    return read_out(gr.solve_transport(p, law, solver))


@functools.cache
def both(name, solver=None):
    """Value and gradient for logits [5, 2, V], as one program."""
    solver = gr.ProjectedNewton(tol=1e-10) if solver is None else solver
    return jax.jit(jax.vmap(jax.value_and_grad(functools.partial(value, name, solver))))


def neighbours(step):
    """The point [2, V], and steps to either side of p's logits and of q's [5, 2, V]."""
    direction = np.random.default_rng(5).normal(size=(2, V))
    steps = step * direction[None] * np.eye(2)[:, :, None]
    return np.concatenate([POINT[None], POINT + steps, POINT - steps]), direction


@pytest.mark.parametrize(
    "name",
    [
        # The gradient of three clocks alone takes longer than all others to compile.
        pytest.param(name, marks=pytest.mark.sweep)
        if "three" in name or name == "independent"
        else name
        for name in LAWS
    ],
)
def test_gradient_is_the_finite_difference(name, float64):
    points, direction = neighbours(1e-4)
    values, gradients = both(name)(points)
    slopes = np.sum(np.asarray(gradients[0]) * direction, axis=1)
    np.testing.assert_allclose(slopes, (values[1:3] - values[3:]) / 2e-4, atol=3e-6)


@pytest.mark.parametrize("name", ["iid"])
def test_the_gradient_of_a_batch_is_the_batch_of_gradients(name, float64):
    points, _ = neighbours(0.2)
    single = functools.partial(value, name, gr.ProjectedNewton(tol=1e-10))
    of_batch = jax.jit(jax.grad(lambda z: jnp.sum(jax.vmap(single)(z))))(points)
    np.testing.assert_allclose(of_batch, both(name)(points)[1], atol=1e-9)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["iid"])
def test_the_other_solver_has_the_same_gradient(name, float64):
    points, _ = neighbours(0.2)
    other = both(name, gr.BoxLBFGS(tol=1e-8, maxiter=2000))(points)
    for ours, theirs in zip(both(name)(points), other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradient_through_pools(float64):
    rng = np.random.default_rng(4)
    logits = -1.3 * np.log(np.arange(1, 401)) + rng.normal(size=(2, 400))
    heavy = np.argsort(logits[1])[-40:]

    def light_weights(logits):
        p, law = jax.nn.softmax(logits[0]), gr.IID(jax.nn.softmax(logits[1]), 3)
        plan = gr.solve_transport(p, law, gr.ProjectedNewton(tol=1e-10))
        light = jnp.where(plan.weights < 50, plan.weights, 0)
        return jnp.sum((light * plan.pick)[heavy]), plan.gap

    direction = np.zeros((2, 400))
    direction[:, heavy[-6:]] = rng.normal(size=(2, 6))
    points = np.stack([logits, logits + 1e-4 * direction, logits - 1e-4 * direction])
    solve = jax.jit(jax.vmap(jax.value_and_grad(light_weights, has_aux=True)))
    ((_, up, down), gaps), gradients = solve(points)
    assert float(gaps.max()) <= 1e-9
    slope = np.sum(np.asarray(gradients[0]) * direction)
    assert slope == pytest.approx(float(up - down) / 2e-4, rel=1e-3, abs=1e-6)
