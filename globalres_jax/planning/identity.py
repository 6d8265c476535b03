"""The name under which estimates are remembered: what they depend on."""

from __future__ import annotations

import hashlib
import operator
import weakref
from typing import Any

import jax
import numpy as np

from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.options import NUMBERS, SamplingOptions

#: Bytes of a model's parameters that are looked at, the smallest arrays first.
_MOST_BYTES = 1 << 20

#: By the identity of its arrays what a model's digest is.
_DIGESTS: dict[tuple[int, ...], tuple[tuple[weakref.ref, ...], bytes]] = {}
_MOST_DIGESTS = 64


def name_of(
    config: SpeculativeConfig, target: Any, drafter: Any, options: SamplingOptions
) -> str:
    """A name that is the same where estimates are worth the same.

    Of the models it knows shapes and some of the numbers, of the sampling options
    rough values, of the device its kind. The sizes of prompts and caches are no part
    of it.

    Args:
      config: the request's.
      target: the model.
      drafter: where drafts come from.
      options: for each row [B], concrete.
    """
    leaves = jax.tree.leaves(target.params)
    on = [leaf.devices() for leaf in leaves if isinstance(leaf, jax.Array)]
    kinds = sorted(one.device_kind for one in (on[0] if on else jax.devices()[:1]))
    said = [
        _kind(config.verifier),
        _kind(config.law),
        config.draft_top_k,
        config.draft_temperature,
        kinds,
        jax.__version__,
        *_options(options),
    ]
    digest = hashlib.sha256(repr(said).encode())
    for part in (target, drafter):
        digest.update(_digest(part))
    return digest.hexdigest()[:32]


def _kind(part: Any) -> str:
    """A class by its name, a value by its class and fields."""
    if isinstance(part, type) or not hasattr(part, "__dataclass_fields__"):
        return getattr(part, "__qualname__", repr(part))
    return repr(part)


def _options(options: SamplingOptions) -> list:
    values = [getattr(options, name) for name in NUMBERS]
    rows = len(np.asarray(options.temperature))
    rough = [x if x is None else round(float(np.mean(x)), 1) for x in values]
    bias = [np.round(x, 1).tolist() for x in options.logit_bias or ()]
    if options.bregman is not None:
        numbers = options.bregman.alpha, options.bregman.token_cost
        rough += [x if x is None else f"{float(np.mean(x)):.1g}" for x in numbers]
        rough.append(options.bregman.dual)
    return [rows, options.greedy, *rough, *bias]


def _digest(part: Any) -> bytes:
    """Of a model or drafter; kept as long as its arrays live."""
    leaves = jax.tree.leaves(part)
    if not leaves:
        return repr(part).encode()
    key = tuple(map(id, leaves))
    held, digest = _DIGESTS.get(key, ((), b""))
    alive = [one() for one in held]
    if len(alive) == len(leaves) and all(map(operator.is_, alive, leaves)):
        return digest
    digest = _digest_arrays(type(part).__qualname__, leaves)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        if len(_DIGESTS) >= _MOST_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[key] = tuple(map(weakref.ref, leaves)), digest
    return digest


def _digest_arrays(name: str, leaves: list) -> bytes:
    digest = hashlib.sha256(name.encode())
    left, has_matrix = _MOST_BYTES, False
    for leaf in sorted(leaves, key=lambda leaf: leaf.nbytes):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        left -= leaf.nbytes
        # Scales of layers are much alike in many models: one matrix at least.
        wanted = left >= 0 or (leaf.ndim > 1 and not has_matrix)
        if wanted and getattr(leaf, "is_fully_addressable", True):
            digest.update(np.asarray(leaf).tobytes())
            has_matrix |= leaf.ndim > 1
    return digest.digest()
