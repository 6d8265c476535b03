"""What a target says of the texts: computed once and kept, or anew in every step.

Kept are its features in float16, and the logarithm of the sum of exp(logits): from them
and the head follow the probabilities of any tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Model
from globalres_jax.models.draft_training.corpus import count_tokens, sampled
from globalres_jax.models.draft_training.texts import Texts
from globalres_jax.models.drafts import head_logits, target_features

_LARGEST = float(np.finfo(np.float16).max)
#: Positions whose whole rows are looked at to rank tokens.
_LOOKED_AT = 2048


class Batch(NamedTuple):
    """Texts and what the target says of them.

    Attributes:
      tokens: [B, L].
      lengths: [B] tokens of each text.
      counted: [B, L] rows that are about a sampled token.
      features: [B, L, D] of the target; None where they are computed anew.
      log_normalizer: [B, L] likewise.
    """

    tokens: Array
    lengths: Array
    counted: Array
    features: Array | None = None
    log_normalizer: Array | None = None

    def with_teacher(self, target: Model) -> Batch:
        """The same with what the target says, computed if it is not there."""
        if self.features is not None:
            return self._replace(features=self.features.astype(jnp.float32))
        features, normalizer = target_features(target, self.tokens, self.lengths)
        return self._replace(
            features=features.astype(jnp.float32), log_normalizer=normalizer
        )


@dataclasses.dataclass(frozen=True)
class Lessons:
    """All texts of a run, and what is kept of the target's rows.

    Attributes:
      texts: R rows.
      counted: [R, L].
      features: [R, L, D] float16, perhaps in a file; None for those computed anew.
      log_normalizer: [R, L] float32, likewise.
    """

    texts: Texts
    counted: np.ndarray
    features: np.ndarray | None = None
    log_normalizer: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, chosen: np.ndarray) -> Batch:
        """A batch of the chosen rows."""
        kept = ()
        if self.features is not None:
            kept = np.asarray(self.features[chosen]), self.log_normalizer[chosen]
        texts = self.texts[chosen]
        return Batch(texts.tokens, texts.lengths, self.counted[chosen], *kept)


def keep_lessons(
    folder: Path,
    name: str,
    target: Model,
    texts: Texts,
    batch: int,
    report: Callable[[int], None] = lambda _: None,
) -> Lessons:
    """Computes what the target says of all texts, unless the folder has it.

    Args:
      folder: where it is kept, two bytes a feature.
      name: of these texts.
      target: the model.
      texts: R rows.
      batch: rows at once.
      report: progress in rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}-features.npy", folder / f"{name}-normalizer.npy"
    if not paths[1].is_file():
        normalizers, file = np.zeros(texts.tokens.shape, np.float32), None
        for start in range(0, len(texts), batch):
            rows = np.arange(start, start + batch) % len(texts)
            part = texts[rows]
            said = target_features(target, part.tokens, part.lengths)
            features = np.clip(np.asarray(said[0], np.float32), -_LARGEST, _LARGEST)
            if file is None:
                shape = *texts.tokens.shape, features.shape[-1]
                file = np.lib.format.open_memmap(paths[0], "w+", np.float16, shape)
            count = min(batch, len(texts) - start)
            file[start : start + count] = features[:count]
            normalizers[start : start + count] = np.asarray(said[1])[:count]
            report(start + count)
        file.flush()
        np.save(paths[1], normalizers)
    features, normalizers = np.load(paths[0], mmap_mode="r"), np.load(paths[1])
    return Lessons(texts, sampled(texts), features, normalizers)


def frequent_tokens(target: Model, texts: Texts, count: int) -> np.ndarray:
    """The tokens that come most often, in the order of their numbers: [N] int32.

    Counted in the texts; and since most tokens are rare, the target's probabilities at
    some positions are added, which know of tokens that nobody drew.

    Args:
      target: the model.
      texts: R rows.
      count: N, at most V.
    """
    counts = count_tokens(texts, target.vocab_size).astype(np.float64)
    rows = max(1, min(len(texts), _LOOKED_AT // texts.tokens.shape[1]))
    part = texts[:rows]
    features, normalizer = target_features(target, part.tokens, part.lengths)
    seen = np.asarray(
        _expected(target, features, normalizer, jnp.asarray(sampled(part)))
    )
    order = np.argsort(-(counts + seen), kind="stable")
    return np.sort(order[:count]).astype(np.int32)


@jax.jit
def _expected(target: Model, features, normalizer, counted) -> Array:
    """[V] the sum of the target's probabilities over the counted positions."""
    ids = jnp.arange(target.vocab_size)

    def add(total: Array, row) -> tuple[Array, None]:
        features, normalizer, counted = row
        log_p = head_logits(target, features, ids) - normalizer[:, None]
        p = jnp.where(counted[:, None], jnp.exp(log_p), 0)
        return total + p.sum(0), None

    start = jnp.zeros(target.vocab_size)
    return jax.lax.scan(add, start, (features, normalizer, counted))[0]
