"""What tests of derivatives share: a smooth point, steps off it, and the traps."""

import jax
import numpy as np
from conftest import adversarial

V = 5
_RNG = np.random.default_rng(1)
#: Logits of p and of q, away from ties.
POINT = np.stack([_RNG.normal(size=V), 1.2 * _RNG.normal(size=V)])
_STEPS = 1e-4 * np.random.default_rng(5).normal(size=(3, 2, V))


def logits():
    """[7 + 24, 2, V] the point, steps to either side, and the traps twice.

    Once with zeros that are zero, once with numbers so small that squares vanish.
    """
    pairs = np.stack([np.stack(pair) for pair in adversarial(V).values()])
    with np.errstate(divide="ignore"):
        traps = [np.log(pairs), np.log(np.maximum(pairs, 1e-300))]
    around = [POINT[None], POINT + _STEPS, POINT - _STEPS]
    return np.concatenate([*around, *traps])


def check(function, tolerance: float = 1e-5) -> None:
    """The derivatives of `function(p, q) -> [m]` are finite differences', and finite.

    By one compiled program, which maps over rows and so is `vmap(grad)`, too.
    """

    def of_logits(z):
        values = function(*jax.nn.softmax(z))
        return values, values

    both = jax.jit(jax.vmap(jax.jacrev(of_logits, has_aux=True)))
    jacobian, values = jax.tree.map(np.asarray, both(logits()))
    count = len(_STEPS)
    differences = (values[1 : 1 + count] - values[1 + count : 1 + 2 * count]) / 2
    slopes = np.einsum("mkv,dkv->dm", jacobian[0], _STEPS)
    np.testing.assert_allclose(slopes / 1e-4, differences / 1e-4, atol=tolerance)
    assert np.abs(slopes).max() > 1e-6
    bad = ~np.isfinite(jacobian).all(axis=(1, 2, 3))
    assert not bad.any(), np.flatnonzero(bad)
