"""How drafts are drawn: what a plan chooses beside the shape, and when it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.options import SamplingOptions

#: Tokens that drafts are drawn from, and draft temperatures, that a plan compares.
TOP_KS, TEMPERATURES = (64, 256, 1024), (1.0, 0.7, 1.3)
#: Three and more drafts without replacement are drawn from no more tokens: their race
#: is an integral over clocks.
CLOCKS_TOP_K = 64
#: What is not usual must look better by so many standard errors, and by this share:
#: times differ a little by chance.
SURE, LEAST_GAIN = 2.0, 0.01


class Draws(NamedTuple):
    """How drafts are drawn, where a config leaves it open.

    Attributes:
      top_k: the tokens that they are drawn from.
      temperature: of the draft, times the target's.
      law: of the root's children where there are several, by its command-line name.
        Below the root each node has one.
    """

    top_k: int = 256
    temperature: float = 1.0
    law: str = "iid"

    def top_k_for(self, num_drafts: int) -> int:
        """The tokens that several drafts are drawn from."""
        by_clocks = self.law == "without-replacement" and num_drafts > 2
        return min(self.top_k, CLOCKS_TOP_K) if by_clocks else self.top_k


def open_draws(
    config: SpeculativeConfig, options: SamplingOptions, vocab_size: int, usual: Draws
) -> list[Draws]:
    """What one path may be drawn by; the usual way comes first.

    Args:
      config: what it names is kept.
      options: likewise.
      vocab_size: V.
      usual: how drafts are drawn if nothing else is better.
    """
    top_ks, temperatures = TOP_KS, TEMPERATURES
    most = min(vocab_size, options.max_support or vocab_size)
    # More than all tokens are all.
    top_ks = [k for i, k in enumerate(top_ks) if i == 0 or top_ks[i - 1] < most]
    if config.draft_top_k is not None:
        top_ks = [config.draft_top_k]
    named = config.draft_temperature, options.draft_temperature
    if options.greedy or any(one is not None for one in named):
        temperatures = (1.0,)
    found = [
        usual._replace(top_k=k, temperature=t) for k in top_ks for t in temperatures
    ]
    first = usual if usual in found else usual._replace(top_k=max(top_ks))
    first = first if first in found else first._replace(temperature=1.0)
    return [first, *(one for one in found if one != first)]


def best_draws(accepted: np.ndarray, seconds: Sequence[float]) -> int:
    """Which way writes most tokens a second, for sure.

    Args:
      accepted: [A, n] drafts accepted of the same n trees by each way, the usual first.
      seconds: [A] of a step.
    """
    rates = (1 + accepted) / np.asarray(seconds)[:, None]
    gain = rates - rates[0]
    error = gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1])
    least = np.maximum(SURE * error, LEAST_GAIN * rates[0].mean())
    gain = gain.mean(axis=1)
    return int(np.argmax(np.where(gain > least, gain, 0)))
