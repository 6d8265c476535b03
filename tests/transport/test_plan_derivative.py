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
        jax.nn.softmax(q), 3, max_support=5
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
    """Value and gradient for stacked logits, as one program."""
    solver = gr.ProjectedNewton(tol=1e-11) if solver is None else solver
    return jax.jit(
        jax.vmap(jax.value_and_grad(functools.partial(value, name, solver)))
    )


@pytest.mark.parametrize("name", LAWS)
def test_gradient_is_the_finite_difference(name, float64):
    steps = 1e-4 * np.eye(2 * V).reshape(-1, 2, V)
    points = np.concatenate([POINT[None], POINT + steps, POINT - steps])
    values, gradients = both(name)(points)
    up, down = np.split(np.asarray(values[1:]), 2)
    np.testing.assert_allclose(gradients[0].ravel(), (up - down) / 2e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["iid", "independent"])
def test_the_gradient_of_a_batch_is_the_batch_of_gradients(name, float64):
    steps = 0.1 * np.eye(2 * V).reshape(-1, 2, V)
    points = jnp.asarray(np.concatenate([POINT[None], POINT + steps, POINT - steps]))
    single = functools.partial(value, name, gr.ProjectedNewton(tol=1e-11))
    of_batch = jax.jit(jax.grad(lambda z: jnp.sum(jax.vmap(single)(z))))(points)
    np.testing.assert_allclose(of_batch, both(name)(points)[1], atol=1e-9)


@pytest.mark.parametrize("name", ["iid", "two without replacement"])
def test_the_other_solver_has_the_same_gradient(name, float64):
    other = both(name, gr.BoxLBFGS(tol=1e-8, maxiter=2000))(POINT[None])
    ours = both(name)(np.concatenate([POINT[None]] * 25))
    np.testing.assert_allclose(other[0][0], ours[0][0], atol=1e-5)
    np.testing.assert_allclose(other[1][0], ours[1][0], atol=1e-5)


def test_gradient_through_pools(float64):
    rng = np.random.default_rng(4)
    logits = -1.3 * np.log(np.arange(1, 401)) + rng.normal(size=(2, 400))
    heavy = np.argsort(logits[1])[-40:]

    def light_weights(logits):
        p, law = jax.nn.softmax(logits[0]), gr.IID(jax.nn.softmax(logits[1]), 3)
        plan = gr.solve_transport(p, law, gr.ProjectedNewton(tol=1e-10))
        light = jnp.where(plan.weights < 50, plan.weights, 0)
        return jnp.sum((light * plan.pick)[heavy]), plan.gap

    steps = np.zeros((4, 2, 400))
    for row, token in enumerate(heavy[-2:]):
        steps[row, 1, token] = steps[row + 2, 0, token] = 1e-4
    points = np.concatenate([logits[None], logits + steps, logits - steps])
    solve = jax.jit(jax.vmap(jax.value_and_grad(light_weights, has_aux=True)))
    (values, gaps), gradients = solve(points)
    assert float(gaps.max()) <= 1e-9
    up, down = np.split(np.asarray(values[1:]), 2)
    found = np.sum(np.asarray(gradients[0])[None] * steps, (1, 2)) / 1e-4
    np.testing.assert_allclose(found, (up - down) / 2e-4, rtol=1e-3, atol=1e-6)
