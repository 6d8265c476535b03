"""What the benchmarks share: logits, timing, and an independent pick law."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax import models
from globalres_jax.commands.acceptance import load_logits

TEXT = (
    "KING RICHARD III:\nNow is the winter of our discontent made glorious summer by "
    "this sun of York; and all the clouds that lour'd upon our house in the deep bosom "
    "of the ocean buried. Now are our brows bound with victorious wreaths."
)


def logits_pair(path: Path | None, rows: int) -> tuple[jax.Array, jax.Array]:
    """Logits [rows, V] of target and draft: from a file, or of the embedded pair."""
    if path is not None:
        target, draft = load_logits(path)
        return target[:rows], draft[:rows]
    pair = []
    for name in ("embedded", "embedded-draft"):
        model = models.load(name)
        tokens = jnp.asarray([model.tokenizer.encode(TEXT)[:rows]])
        length = tokens.shape[1]
        logits, _ = model.apply(
            model.params,
            tokens,
            jnp.arange(length)[None],
            model.init_cache(1, length),
            jnp.tril(jnp.ones((length, length), bool))[None],
        )
        pair.append(logits[0])
    return pair[0], pair[1]


def call_seconds(function: Callable, *args, repeats: int) -> tuple[object, np.ndarray]:
    """The result, and the seconds of each of `repeats` calls after a warm one."""
    result = jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - start)
    return result, np.asarray(seconds)


def time_call(function: Callable, *args, repeats: int = 3) -> tuple[object, float]:
    """The result, and the median seconds of `repeats` calls after a warm one."""
    result, seconds = call_seconds(function, *args, repeats=repeats)
    return result, float(np.median(seconds))


def fine_pick_law(q: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """beta [V] in float64 by a quadrature four times finer than the library's."""
    s = np.arange(-60, 4, 0.125)
    nodes = np.exp(s)
    measure = 0.125 * np.exp(-nodes) * nodes
    beta, used = np.zeros(len(q)), np.flatnonzero(weights > 0)
    phi = np.full(len(nodes), q.sum() - q[used].sum())
    for part in np.array_split(used, max(1, len(used) // 4096)):
        phi += np.exp(-nodes[:, None] * weights[None, part]) @ q[part]
    scale = n * measure * phi ** (n - 1)
    for part in np.array_split(used, max(1, len(used) // 4096)):
        survive = np.exp(-nodes[:, None] * weights[None, part])
        beta[part] = q[part] * weights[part] * (scale @ survive)
    return beta


def output_deviation(
    p: np.ndarray, q: np.ndarray, n: int, weights: np.ndarray, pick: np.ndarray
) -> float:
    """L1 distance from p of the law that a plan's weights and pick law emit."""
    p, q = p.astype(np.float64), q.astype(np.float64)
    q = q / q.sum()
    beta = fine_pick_law(q, weights.astype(np.float64), n)
    assumed = pick.astype(np.float64)
    ratio = np.where(
        assumed > 0, np.minimum(1, p / np.where(assumed > 0, assumed, 1)), 0
    )
    emitted = beta * ratio
    residual = np.maximum(p - assumed, 0)
    # What the rule falls back on; `p` may be the part of a target that has no mass.
    residual = residual if residual.sum() > 0 else p
    residual = residual / max(residual.sum(), np.finfo(np.float64).tiny)
    return float(np.abs(emitted + (p.sum() - emitted.sum()) * residual - p).sum())
