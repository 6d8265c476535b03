"""The rotary embedding that a description stands for, as transformers reads it.

Older configurations have `rope_theta` and `rope_scaling`, newer ones
`rope_parameters`, of which Gemma 3 has one for each kind of layer.
"""

from __future__ import annotations

import dataclasses

from globalres_jax.models.description import Description
from globalres_jax.models.rope import Rope, llama3_factors

_FULL, _SLIDING = "full_attention", "sliding_attention"


def rope(described: Description) -> Rope:
    """Rotation of a model whose layers all have the same."""
    return _rope(described, _shared(described), "rope_theta")


def rope_of_full_layers(described: Description) -> Rope:
    """Rotation of Gemma 3's layers without a sliding window."""
    return _rope(described, _of_kind(described, _FULL), "rope_theta")


def rope_of_sliding_layers(described: Description) -> Rope:
    """Rotation of Gemma 3's layers with a sliding window."""
    return _rope(described, _of_kind(described, _SLIDING), "rope_local_base_freq")


def context_length(described: Description, stretched: bool) -> int | None:
    """Most tokens of a text that a model was made for; None if that is null.

    Args:
      described: the model.
      stretched: whether the number is the one after a linear scaling of positions
        (Gemma 3) and not the one before.
    """
    if not described.says("max_position_embeddings"):
        return None
    length = described.whole("max_position_embeddings")
    if stretched or _type(_shared(described)) != "linear":
        return length
    return max(1, int(length * _scale(_shared(described))))


def _shared(described: Description) -> Description:
    """The options of a rotation that all layers share."""
    old = described.within("rope_scaling")
    options = old if old.options else described.within("rope_parameters")
    for kind in (_FULL, _SLIDING):
        if kind in options.options:
            raise options.error(kind, "left out: all layers of this model rotate alike")
    return options


def _of_kind(described: Description, kind: str) -> Description:
    """The options of the rotation of Gemma 3's layers of a kind."""
    both = described.within("rope_parameters")
    if both.options and not {_FULL, _SLIDING} & set(both.options):
        raise described.error("rope_parameters", f"an object of {_FULL} and {_SLIDING}")
    options = Description({}, described.origin, lead=f"{both.lead}{kind}.")
    if kind in both.options:
        options = both.within(kind)
    old = described.within("rope_scaling")
    if kind == _FULL and old.options:
        options = dataclasses.replace(old, options={**options.options, **old.options})
    return options


def _rope(described: Description, options: Description, base: str) -> Rope:
    """The rotation of some options, its base in `described` if they do not say it."""
    if "rope_theta" in options.options:
        theta = options.number("rope_theta", 1)
    else:
        theta = described.number(base, 1)
    for place in (described, options):
        part = "partial_rotary_factor"
        if place.says(part) and place.get(part) != 1:
            raise place.error(part, "1: all features rotate")
    kind = _type(options)
    factors = described.get("rope_factors") if described.says("rope_factors") else None
    if kind == "llama3":
        factors = _llama3(described, options, theta)
    scale = _scale(options) if kind == "linear" else 1.0
    return Rope(theta, scale, None if factors is None else tuple(factors))


def _type(options: Description) -> str:
    name = "rope_type" if "rope_type" in options.options else "type"
    if name not in options.options:
        return "default"
    kind = options.get(name)
    if not isinstance(kind, str) or kind not in ("default", "linear", "llama3"):
        raise ValueError(
            f"source: {options.origin}: {options.name(name)}: rope scaling {kind!r} is "
            "not supported; supported: default, linear, llama3"
        )
    return kind


def _scale(options: Description) -> float:
    return options.number("factor", 1e-3, 1e6)


def _llama3(described: Description, options: Description, theta: float):
    """What Llama 3.1 divides its frequencies by."""
    name = "original_max_position_embeddings"
    places = (described, options, described)
    names = (name, name, "max_position_embeddings")
    place, name = next(
        (pair for pair in zip(places, names, strict=True) if pair[0].says(pair[1])),
        (options, name),
    )
    low = options.number("low_freq_factor", -1e-30)
    return llama3_factors(
        theta,
        described.head_dim,
        factor=_scale(options),
        low_freq_factor=low,
        high_freq_factor=options.number("high_freq_factor", low),
        original_max_position_embeddings=place.whole(name),
    )
