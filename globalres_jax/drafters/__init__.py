"""Where drafts come from, one source a file, behind `base.Drafter`."""

from __future__ import annotations

import functools
from typing import Any

from globalres_jax.base import Drafter, Model
from globalres_jax.drafters.feature import FeatureDrafter
from globalres_jax.drafters.model import ModelDrafter
from globalres_jax.drafters.nothing import NoDrafts
from globalres_jax.drafters.prompt_lookup import PromptLookup


@functools.singledispatch
def as_drafter(draft: Any) -> Drafter:
    """A drafter as it is, a model as `ModelDrafter`."""
    return draft


@as_drafter.register
def _(draft: Model) -> Drafter:
    return ModelDrafter(draft)


__all__ = ["FeatureDrafter", "ModelDrafter", "NoDrafts", "PromptLookup", "as_drafter"]
