"""Measures on the machine at hand: what parts of a step cost, what drafts are accepted.

The trees that are looked at are drawn
while the target continues the prompts one token at a time; what is accepted of each is
computed, not drawn. That text is thrown away, and its keys are its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from globalres_jax.base import Array, Cache
from globalres_jax.decoding.state import Request
from globalres_jax.planning import parts
from globalres_jax.planning.draws import Draws
from globalres_jax.planning.reweighting import can_be_redrawn, look_closer

#: Trees that are looked at, of each row; fewer where they take longer than this.
MOST_TREES, LEAST_TREES, SECONDS = 32, 16, 2.0
#: Slots of the caches that probing needs beyond the prompts.
ROOM = MOST_TREES + 64
#: A time is the least of so many rounds, since other work on the machine only adds to
#: it; each is of a loop of about so many seconds.
REPEATS, LOOP_SECONDS, LONGEST_LOOP = 15, 0.006, 16


class Prompts(NamedTuple):
    """What probing continues.

    Attributes:
      tokens: [B, P].
      lengths: [B].
      capacity: slots of the caches, `P + ROOM` at least.
    """

    tokens: Array
    lengths: Array
    capacity: int


#: A part of a step: runs it so many times, one after another.
Part = Callable[[int], Any]


class Seen(NamedTuple):
    """What a probe of one shape found.

    Attributes:
      survival: [D] expected share of steps that accept so many drafts or more.
      trees: how many were looked at.
      draft: drafting a tree, to be timed.
      target: scoring one.
      verify: verifying one.
      redrawn: of one path, [A, n, D] what each level would have added by other draws.
      after_root: then [n, k] rows of p and q, at the tokens of the laws drawn from.
    """

    survival: tuple[float, ...]
    trees: int
    draft: Part
    target: Part
    verify: Part
    redrawn: np.ndarray | None = None
    after_root: tuple[np.ndarray, np.ndarray] | None = None


class Probe:
    """Measures for one request, on the device that holds it.

    Attributes:
      prompts: what it continues.
      platform: where the target lies.
      clock: seconds, as `time.perf_counter`.
    """

    def __init__(
        self,
        prompts: Prompts,
        platform: str | None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.prompts, self.platform, self.clock = prompts, platform, clock
        batch = len(prompts.lengths)
        self.keys = jax.random.split(jax.random.key(0x5EED), batch)

    def target_call(self, request: Request) -> Part:
        """A target call on the tree of the request's config, to be timed."""
        cache, _, one, *_ = self._start(request)
        shape = len(self.keys), request.config.token_tree.num_nodes
        tokens = jax.device_put(np.zeros(shape, np.int32))
        return self._target(request, cache, tokens, one)

    def level_of_drafts(self, request: Request) -> Part:
        """Drawing one draft from logits by the request's config, to be timed."""
        shape = len(self.keys), 1, request.target.vocab_size
        logits = np.random.default_rng(0).standard_normal(shape, np.float32)
        call = self.keys, jax.device_put(logits), request, self.platform
        return lambda repeats: parts.draw(repeats, *call)

    def look(self, request: Request, others: Sequence[Draws] = ()) -> Seen:
        """Draws trees of the config's shape, and sees what the rule accepts of them.

        Args:
          request: with the config.
          others: ways to draw, to be compared on the same trees.
        """
        top_ks = np.array([draws.top_k for draws in others], np.int32)
        ways = top_ks, np.array([draws.temperature for draws in others], np.float32)
        start, state, one, counts, feature = self._start(request)
        first = state, counts
        cache, text, token, count = start, first, one, one - one
        found, closer, begun = [], [], self.clock()
        while len(found) < LEAST_TREES or (
            len(found) < MOST_TREES and self.clock() - begun < SECONDS
        ):
            index = len(found)
            last = token, count, feature
            drawn = self.keys, index, text, last, request, self.platform
            proposal, text = parts.draft(1, *drawn)
            scored = cache, proposal.tokens, count, request, self.platform
            logits, feature, cache = parts.score(1, *scored)
            seen = self.keys, index, proposal, logits, text[1], request, self.platform
            added, token = parts.accept(1, *seen)
            count = one
            if others and can_be_redrawn(proposal):
                redrawn = look_closer(*seen[2:6], *ways, self.platform)
                closer.append(jax.tree.map(np.asarray, redrawn))
            found.append(np.asarray(added, np.float64))
            if index == 0:
                begun = self.clock()  # what follows is compiled
        mean = np.clip(np.mean(found, axis=(0, 1)), 0, 1)
        joined = [np.concatenate(rows) for rows in zip(*closer, strict=True)]
        last = token, count, feature
        begin = self.keys, 0, first, last, request, self.platform
        return Seen(
            survival=tuple(np.minimum.accumulate(mean).tolist()),
            trees=len(found),
            draft=lambda repeats: parts.draft(repeats, *begin),
            target=self._target(request, start, proposal.tokens, one),
            verify=lambda repeats: parts.accept(repeats, *seen),
            redrawn=joined[0].swapaxes(0, 1) if joined else None,
            after_root=tuple(joined[1:]) if joined else None,
        )

    def seconds(self, pieces: Sequence[Part]) -> list[float]:
        """Least seconds of each part, of rounds in which they take turns."""

        def timed(part: Part, repeats: int) -> float:
            start = self.clock()
            jax.block_until_ready(part(repeats))
            return (self.clock() - start) / repeats

        for part in pieces:
            jax.block_until_ready(part(1))
        once = [max(timed(part, 1), 1e-9) for part in pieces]
        repeats = [
            max(1, min(LONGEST_LOOP, round(LOOP_SECONDS / seconds))) for seconds in once
        ]
        pairs = list(zip(pieces, repeats, strict=True))
        rounds = [[timed(*pair) for pair in pairs] for _ in range(REPEATS)]
        return np.min(rounds, axis=0).tolist()

    def _target(
        self, request: Request, cache: Cache, tokens: Array, count: Array
    ) -> Part:
        call = cache, tokens, count, request, self.platform
        return lambda repeats: parts.score(repeats, *call)

    def _start(self, request: Request) -> tuple:
        models = request.target, request.drafter, request.options
        rows = self.prompts.tokens, self.prompts.lengths
        return parts.start(*models, *rows, self.prompts.capacity, self.platform)
