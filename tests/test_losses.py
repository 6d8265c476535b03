"""The losses: their values, gradients, and what happens at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adversarial

import globalres_jax as gr
from globalres_jax import losses

V = 5
RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(V), 3)
LOGITS = RNG.normal(size=(3, V))
OPTIMA = {
    "one": functools.partial(losses.negative_log_optimum, num_drafts=1),
    "three": functools.partial(losses.negative_log_optimum, num_drafts=3),
    "without replacement": functools.partial(
        losses.negative_log_optimum, num_drafts=2, law=gr.WithoutReplacement
    ),
}
LOSSES = {
    "kl": losses.kl_divergence,
    "reverse kl": losses.reverse_kl_divergence,
    "jensen-shannon": losses.jensen_shannon,
    "total variation": losses.total_variation,
    "lk": losses.lk,
    "mixture": losses.lk_mixture,
    **OPTIMA,
}


def every_loss(target, draft):
    """[losses, ...] of rows."""
    return jnp.stack([loss(target, draft) for loss in LOSSES.values()])


def values_and_gradients(target, draft):
    """[losses, rows] and [losses, rows, V]."""
    return jax.tree.map(np.asarray, _values_and_gradients(target, draft))


@jax.jit
def _values_and_gradients(target, draft):
    values, back = jax.vjp(functools.partial(every_loss, target), draft)
    ones = jnp.eye(len(LOSSES))[:, :, None] * jnp.ones(len(draft))[None, None]
    return values, jax.vmap(back)(ones)[0]


def test_values_and_gradients(float64):
    """Against the formulas, and against finite differences."""
    direction = RNG.normal(size=LOGITS.shape)
    rows = np.concatenate(
        [LOGITS, LOGITS + 1e-5 * direction, LOGITS - 1e-5 * direction]
    )
    values, gradients = values_and_gradients(np.tile(P, (3, 1)), rows)
    q = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    middle = (P + q) / 2

    def kl(x, y):
        return (x * np.log(x / y)).sum(1)

    overlap, jensen = np.minimum(P, q).sum(1), (kl(P, middle) + kl(q, middle)) / 2
    weight = np.exp(-3 * overlap)
    mixture = weight * kl(P, q) + (1 - weight) * (1 - overlap)
    known = [kl(P, q), kl(q, P), jensen, 1 - overlap, -np.log(overlap), mixture]
    np.testing.assert_allclose(values[:6, :3], known, atol=1e-12)
    law = gr.WithoutReplacement(q[0], 2)
    best = gr.testing.linear_program(P[0], law)
    assert float(values[-1, 0]) == pytest.approx(-np.log(best), abs=1e-8)

    slopes = np.sum(gradients[:, :3] * direction, axis=-1)
    differences = (values[:, 3:6] - values[:, 6:]) / 2e-5
    # No derivative flows into the mixture's weight.
    at = list(LOSSES).index("mixture")
    slopes, differences = (np.delete(x, at, axis=0) for x in (slopes, differences))
    np.testing.assert_allclose(slopes, differences, atol=1e-6)
    far, near = gradients[0, :3], gradients[3, :3]
    mixed = weight[:, None] * far + (1 - weight[:, None]) * near
    np.testing.assert_allclose(gradients[at, :3], mixed, atol=1e-12)


def test_lk_is_minus_log_of_the_optimum_of_one_draft(float64):
    """With its gradient, where no token ties; all gradients are finite everywhere."""
    p, q = np.swapaxes([np.stack(pair) for pair in adversarial(V).values()], 0, 1)
    p, q = (np.concatenate([x, x]) for x in (p, q))
    # Tokens left out, and some so unlikely that squares vanish.
    q[len(q) // 2 :] = np.maximum(q[len(q) // 2 :], 1e-300)
    with np.errstate(divide="ignore"):
        rows = np.concatenate([LOGITS, np.log(q)])
    p = np.concatenate([P, p])
    values, gradients = values_and_gradients(p, rows)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    lk, one = list(LOSSES).index("lk"), list(LOSSES).index("one")
    np.testing.assert_allclose(values[lk], values[one], atol=1e-12)
    smooth = np.abs(p - np.asarray(jax.nn.softmax(rows))).min(1) > 1e-9
    assert smooth.sum() > 3
    np.testing.assert_allclose(
        gradients[lk, smooth], gradients[one, smooth], atol=1e-12
    )


def test_stored_targets(float64):
    """All tokens stored are the whole row; fewer are one outcome with the rest."""
    logits = np.log(P)
    order = np.argsort(-logits, axis=1)
    kept = np.take_along_axis(logits, order, axis=1)
    store = jax.jit(losses.stored_target)
    whole = store(order, kept, np.zeros(3))
    np.testing.assert_allclose(jax.jit(lambda x: x.dense(V))(whole), P, atol=1e-12)
    expected, _ = values_and_gradients(P, LOGITS)
    found = jax.jit(losses.kl_divergence)(whole, LOGITS)
    np.testing.assert_allclose(found, expected[0], atol=1e-9)

    known = store(order[:, :3], kept[:, :3], np.zeros(3))
    np.testing.assert_allclose(known.rest, np.sort(P)[:, :2].sum(1), atol=1e-12)
    found, gradients = values_and_gradients(known, LOGITS)
    divergences, rates = slice(0, 3), [3, 4, 6, 7, 8]
    assert (found[divergences] <= expected[divergences] + 1e-12).all()
    assert (found[rates] >= expected[rates] - 1e-12).all()
    assert np.ptp(found - expected) > 0.01
    assert np.isfinite(gradients).all()

    dropped = store(order[:, :3], kept[:, :3])
    np.testing.assert_allclose(np.sum(dropped.probs, axis=1), 1)
    values, gradients = values_and_gradients(dropped, LOGITS)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()


def test_shapes_of_stored_targets():
    with pytest.raises(ValueError, match=r"tokens: expected the shape \(2, 3\)"):
        losses.stored_target(jnp.zeros((2, 2), int), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"log_total: expected shape \(2,\)"):
        losses.stored_target(jnp.zeros((2, 3), int), jnp.zeros((2, 3)), jnp.zeros(3))


def test_gradient_of_the_accepted_length_is_that_of_its_expectation(float64):
    """Over all trees that can be drawn: chains of two tokens, of three there are."""
    size, tree = 3, gr.tree.chain(2)
    rng = np.random.default_rng(2)
    tables = rng.normal(size=(2, 1 + size, size))
    direction = rng.normal(size=(1 + size, size))
    pairs = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
    trees = np.concatenate([np.zeros((9, 1), int), pairs.reshape(-1, 2)], axis=1)
    # The root has the first row, and a node that of its token; a leaf's is not read.
    nodes = np.stack([trees[:, 0], 1 + trees[:, 1], 1 + trees[:, 2]], axis=1)

    def loss(draft, tokens, rows):
        target = jax.nn.softmax(jnp.asarray(tables[0]))[rows]
        return losses.negative_accepted_length(
            tree, tokens[None], target[None], draft[rows][None]
        )

    @jax.jit
    @jax.vmap
    def over_trees(draft):
        q = jax.nn.softmax(draft)
        chance = q[0][trees[:, 1]] * q[1 + trees[:, 1], trees[:, 2]]
        each = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))
        values, gradients = each(draft, jnp.asarray(trees), jnp.asarray(nodes))
        return chance @ values, jnp.einsum("t,tij->ij", chance, gradients)

    step = 1e-5 * direction
    drafts = np.stack([tables[1], tables[1] + step, tables[1] - step])
    values, gradients = over_trees(jnp.asarray(drafts))
    slope = np.sum(np.asarray(gradients[0]) * direction)
    assert slope == pytest.approx(float(values[1] - values[2]) / 2e-5, abs=1e-7)
    assert -2 < float(values[0]) < 0
