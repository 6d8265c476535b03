"""The texts of a run: written in parts, each kept as soon as it is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from globalres_jax.base import Model
from globalres_jax.models.draft_training.texts import (
    Sampling,
    Texts,
    join,
    read_texts,
    write_texts,
)

#: Called with the number of texts that are there.
Report = Callable[[int], None]

_HELD = 0  # number of the part that nothing is learnt from
_TENTH = 10


def collect_texts(
    folder: Path,
    target: Model,
    sampling: Sampling,
    count: int,
    seed: int,
    report: Report = lambda _: None,
    prompts: Sequence[list[int]] = (),
) -> tuple[Texts, Texts]:
    """Texts that the target writes: at least `count` to learn from, and others to hold.

    Those to hold are a batch of their own, at temperature 1, which is that of what is
    measured on them; of ten prompts or more, every tenth is for them alone. Every part
    depends on seed and number alone, so that a run that was interrupted goes on where
    it was.

    Args:
      folder: where the parts are kept.
      target: has a tokenizer.
      sampling: how it writes.
      count: of texts to learn from.
      seed: of the random keys.
      report: progress.
      prompts: as in `write_texts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = dataclasses.replace(sampling, temperatures=(1.0,))
    ways = (held, prompts), (sampling, prompts)
    if len(prompts) >= _TENTH:
        learnt = [x for place, x in enumerate(prompts) if place % _TENTH]
        ways = (held, prompts[::_TENTH]), (sampling, learnt)
    parts = _parts(folder, target, *ways, seed)
    kept, learnt, found = next(parts), [], 0
    while found < count:
        learnt.append(next(parts))
        found += len(learnt[-1])
        report(min(found, count))
    return join(learnt)[:count], kept


def _parts(
    folder: Path, target: Model, held: tuple, learnt: tuple, seed: int
) -> Iterator[Texts]:
    """The parts in order, the first of which is `held`; those not there are written."""
    number = _HELD
    while True:
        path = folder / f"part-{number:05d}.npz"
        if not path.is_file():
            key = jax.random.fold_in(jax.random.key(seed), number)
            how = held if number == _HELD else learnt
            write_texts(key, target, *how).save(path)
        yield Texts.read(path)
        number += 1


def split_file(path: Path, target: Model, length: int, batch: int) -> tuple:
    """A text file in rows: nine tenths to learn from, the last tenth to hold.

    Raises:
      ValueError: it does not come to a batch of rows and one row to hold.
    """
    texts = read_texts(path, target, length)
    held = max(1, len(texts) // 10)
    if len(texts) - held < batch:
        raise ValueError(
            f"--text: {path} comes to {len(texts)} rows of {length} tokens, less than "
            f"a batch (--batch {batch}) and a row to hold out; lower --batch or "
            "--length, or give more text"
        )
    return texts[: len(texts) - held], texts[len(texts) - held :]


def sampled(texts: Texts) -> np.ndarray:
    """[R, L] which rows of the target are about a token that was sampled.

    Row l is about the token in place l + 1.
    """
    following = np.arange(1, texts.tokens.shape[1] + 1)
    starts, lengths = texts.starts[:, None], texts.lengths[:, None]
    return (following >= starts) & (following < lengths)


def count_tokens(texts: Texts, vocab_size: int) -> np.ndarray:
    """[V] how often each token was sampled."""
    places = np.arange(texts.tokens.shape[1])
    chosen = (places >= texts.starts[:, None]) & (places < texts.lengths[:, None])
    return np.bincount(texts.tokens[chosen], minlength=vocab_size)[:vocab_size]
