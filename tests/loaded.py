"""Models that several tests look at, each loaded once, and one program for each.

Nearly all of the time of these tests is compilation, so texts share their shapes.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from globalres_jax import models
from globalres_jax.base import Model

DATA = Path(__file__).parent / "data"
FAMILIES = sorted(path.parent.name for path in DATA.glob("*/golden.npz"))
LENGTH, CAPACITY = 24, 40


class Golden(NamedTuple):
    """A tiny model, tokens [2, LENGTH], and the reference's logits [2, LENGTH, V]."""

    model: Model
    tokens: np.ndarray
    logits: np.ndarray


@functools.cache
def golden(name: str) -> Golden:
    """The golden model of a family, in float32."""
    arrays = np.load(DATA / name / "golden.npz")
    model = models.load(DATA / name, np.float32)
    return Golden(model, arrays["tokens"], arrays["logits"])


@functools.cache
def embedded() -> tuple[Model, Model]:
    """The embedded pair, in float32."""
    return models.load_pair("embedded", "embedded-draft", np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _apply(function, *args):
    # An accelerator's own way to multiply float32 has fewer digits.
    with jax.default_matmul_precision("highest"):
        return function(*args)


def apply(model: Model, tokens, positions, cache, mask):
    """The model's function, compiled once for each shape of `tokens`."""
    # Arrays on the device by decree and by default are different programs.
    args = (model.params, np.asarray(tokens, np.int32), positions, cache, mask)
    return _apply(model.apply, *jax.device_put(args, jax.devices()[0]))


def causal(count: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions [2, count] and mask [2, count, CAPACITY] of tokens after `start`."""
    places = np.arange(start, start + count, dtype=np.int32)
    mask = np.arange(CAPACITY)[None, :] <= places[:, None]
    return (
        np.broadcast_to(places[None], (2, count)),
        np.broadcast_to(mask[None], (2, count, CAPACITY)),
    )


def prefill(model: Model, tokens):
    """Logits [2, L, V] of texts `tokens [2, L]`, L at most LENGTH, and the cache."""
    length = tokens.shape[1]
    padded = np.pad(np.asarray(tokens), ((0, 0), (0, LENGTH - length)))
    cache = model.init_cache(2, CAPACITY)
    positions, mask = causal(LENGTH)
    logits, cache = apply(model, padded, positions, cache, mask)
    return np.asarray(logits)[:, :length], cache.with_length(
        np.full(2, length, np.int32)
    )
