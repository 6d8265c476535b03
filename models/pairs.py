"""Two models that decode together: target and draft over one vocabulary."""

from __future__ import annotations

import dataclasses
import os
import re

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from globalres_jax.base import (
    Array,
    Cache,
    Drafter,
    Model,
    ModelFn,
    Params,
)
from globalres_jax.cache import NewCache
from globalres_jax.drafters.prompt_lookup import PromptLookup
from globalres_jax.models.decoder import DecoderFn
from globalres_jax.models.drafts import load_draft
from globalres_jax.models.drafts.shipped import find_draft
from globalres_jax.models.loading import load

LOOKUP, LAYERS = "prompt-lookup", "layers:"
_MOST_LAYERS = 100_000


def load_pair(
    target: str | os.PathLike,
    draft: str | os.PathLike,
    dtype=None,
    mesh: Mesh | None = None,
) -> tuple[Model, Model | Drafter]:
    """Loads a target and what drafts for it.

    Args:
      target: as `load` takes it.
      draft: likewise; or "layers:0-11" (also "layers:0-5,9,11"), the target with
        these of its layers alone, which shares its weights in memory;
        "prompt-lookup", the continuation of an earlier occurrence in the text; or a
        draft made for this target: its folder, or the name of one that ships with the
        package (`drafts.shipped_drafts`).
      dtype: as in `load`.
      mesh: as in `load`.

    Returns:
      (target, draft), the draft's logits fitted to the target's vocabulary.

    Raises:
      FileNotFoundError, ValueError: as `load`; or the vocabularies differ.
    """
    loaded = load(target, dtype, mesh)
    return loaded, draft_for(loaded, draft, dtype, mesh)


def draft_for(
    target: Model,
    draft: str | os.PathLike,
    dtype=None,
    mesh: Mesh | None = None,
) -> Model | Drafter:
    """Loads what drafts for a target that is there already; several may share it.

    Args:
      target: as `load` gives it.
      draft: as in `load_pair`.
      dtype: as in `load`, for a draft that is a model of its own.
      mesh: likewise.

    Raises:
      FileNotFoundError, ValueError: as `load_pair`.
    """
    name = str(draft)
    if name == LOOKUP:
        return PromptLookup()
    if name.startswith(LAYERS):
        return keep_layers(target, parse_layers(name))
    folder = find_draft(draft)
    if folder is not None:
        return load_draft(folder, target)
    return fit_vocabulary(target, load(draft, dtype, mesh))


def parse_layers(name: str) -> tuple[int, ...]:
    """The layers that "layers:0-5,9" names; ValueError if it is not of this form."""
    ranges = name.removeprefix(LAYERS).split(",")
    layers: list[int] = []
    for part in ranges:
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if not found:
            raise ValueError(
                f"draft: {name!r} names no layers; write for example layers:0-11 or "
                "layers:0-5,9,11"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last > _MOST_LAYERS:
            raise ValueError(f"draft: {part.strip()!r} names a layer that no model has")
        layers += range(first, last + 1)
    if sorted(set(layers)) != layers:
        raise ValueError(f"draft: {name!r} must name layers in order, each once")
    return tuple(layers)


def keep_layers(model: Model, layers: tuple[int, ...]) -> Model:
    """The model with some of its layers; the weights are the same arrays.

    Raises:
      ValueError: it has no such layers, or is none of the families here.
    """
    if not isinstance(model.apply, DecoderFn):
        raise ValueError(
            "draft: layers can be chosen of a target that `load` has loaded, and this "
            f"one is a {type(model.apply).__name__}"
        )
    count = model.apply.num_layers
    if not layers:
        raise ValueError(f"draft: no layers of a target whose layers are 0-{count - 1}")
    if layers[-1] >= count:
        raise ValueError(
            f"draft: layer {layers[-1]} of a target whose layers are 0-{count - 1}"
        )
    function = model.apply.keep_layers(layers)
    place = {old: new for new, old in enumerate(layers)}
    kept = []
    for path, leaf in nnx.to_flat_state(model.params):
        if path[0] != "blocks":
            kept.append((path, leaf))
        elif path[1] in place:
            kept.append((("blocks", place[path[1]], *path[2:]), leaf))
    params = nnx.from_flat_state(kept)
    return dataclasses.replace(
        model, params=params, apply=function, init_cache=NewCache(function)
    )


@dataclasses.dataclass(frozen=True)
class FittedFn:
    """A `ModelFn` whose logits cover `vocab_size` tokens.

    Tokens that it lacks get no probability, and those it has beyond are cut off.
    """

    apply: ModelFn
    vocab_size: int

    def __call__(
        self, params: Params, tokens: Array, positions: Array, cache: Cache, mask: Array
    ) -> tuple[Array, Cache]:
        logits, cache = self.apply(params, tokens, positions, cache, mask)
        lacking = self.vocab_size - logits.shape[-1]
        if lacking > 0:
            widths = ((0, 0), (0, 0), (0, lacking))
            logits = jnp.pad(logits, widths, constant_values=-jnp.inf)
        return logits[..., : self.vocab_size], cache


def fit_vocabulary(target: Model, draft: Model) -> Model:
    """The draft over the target's vocabulary, where both mean the same tokens.

    Output layers are often padded, by different amounts: such tails are fitted, and
    so are tokens at the end that only one of the two has.

    Raises:
      ValueError: a token differs; it is shown.
    """
    ours, theirs = target.tokenizer, draft.tokenizer
    if ours is not None and theirs is not None:
        alike = ours.definition == theirs.definition
        shared = 0 if alike else min(ours.vocab_size, theirs.vocab_size)
        for index in range(shared):
            pair = ours.token_text(index), theirs.token_text(index)
            if pair[0] != pair[1]:
                raise ValueError(
                    f"draft: its vocabulary is not the target's: token {index} is "
                    f"{pair[1]!r}, the target's {pair[0]!r}"
                )
    elif target.vocab_size != draft.vocab_size:
        raise ValueError(
            f"draft: has {draft.vocab_size} tokens, the target {target.vocab_size}, "
            "and there are no two tokenizers to compare"
        )
    if target.vocab_size == draft.vocab_size:
        return draft
    return dataclasses.replace(
        draft,
        apply=FittedFn(draft.apply, target.vocab_size),
        vocab_size=target.vocab_size,
    )
