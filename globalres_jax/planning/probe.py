"""Measures on the machine at hand: what parts of a step cost, what drafts are accepted.

The parts are those of a decoding step, each compiled as a loop of its own, so that
caches are written in place as they are there. The trees that are looked at are drawn
while the target continues the prompts one token at a time; what is accepted of each is
computed, not drawn. That text is thrown away, and its keys are its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Cache, Emitted, Proposal, State
from globalres_jax.cache import prefill_with_features
from globalres_jax.decoding import step
from globalres_jax.decoding.options import FilteredRows
from globalres_jax.decoding.penalties import TextCounts, count_text
from globalres_jax.decoding.step import Request
from globalres_jax.numerics import categorical
from globalres_jax.numerics.rows import map_rows, on_platform
from globalres_jax.tree_verifiers import expected_by_level

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


#: What a drafter knows of the text, and what options do.
Text = tuple[State, TextCounts | None]
#: The token [B] behind a text, and as `_one` has them its count and the feature before.
Last = tuple[Array, Array, Array | None]

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
    """

    survival: tuple[float, ...]
    trees: int
    draft: Part
    target: Part
    verify: Part


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

    def look(self, request: Request) -> Seen:
        """Draws trees of the config's shape, and sees what the rule accepts of them."""
        start, state, one, counts, feature = self._start(request)
        first = state, counts
        cache, text, token, count = start, first, one, one - one
        found, begun = [], self.clock()
        while len(found) < LEAST_TREES or (
            len(found) < MOST_TREES and self.clock() - begun < SECONDS
        ):
            index = len(found)
            last = token, count, feature
            drawn = self.keys, index, text, last, request, self.platform
            proposal, text = _draft(1, *drawn)
            scored = cache, proposal.tokens, count, request, self.platform
            logits, feature, cache = _score(1, *scored)
            seen = self.keys, index, proposal, logits, text[1], request, self.platform
            added, token = _accept(1, *seen)
            count = one
            found.append(np.asarray(added, np.float64))
            if index == 0:
                begun = self.clock()  # what follows is compiled
        mean = np.clip(np.mean(found, axis=(0, 1)), 0, 1)
        last = token, count, feature
        begin = self.keys, 0, first, last, request, self.platform
        return Seen(
            survival=tuple(np.minimum.accumulate(mean).tolist()),
            trees=len(found),
            draft=lambda repeats: _draft(repeats, *begin),
            target=self._target(request, start, proposal.tokens, one),
            verify=lambda repeats: _accept(repeats, *seen),
        )

    def seconds(self, parts: Sequence[Part]) -> list[float]:
        """Least seconds of each part, of rounds in which they take turns."""

        def timed(part: Part, repeats: int) -> float:
            start = self.clock()
            jax.block_until_ready(part(repeats))
            return (self.clock() - start) / repeats

        for part in parts:
            jax.block_until_ready(part(1))
        once = [max(timed(part, 1), 1e-9) for part in parts]
        repeats = [
            max(1, min(LONGEST_LOOP, round(LOOP_SECONDS / seconds))) for seconds in once
        ]
        pairs = list(zip(parts, repeats, strict=True))
        rounds = [[timed(*pair) for pair in pairs] for _ in range(REPEATS)]
        return np.min(rounds, axis=0).tolist()

    def _target(
        self, request: Request, cache: Cache, tokens: Array, count: Array
    ) -> Part:
        call = cache, tokens, count, request, self.platform
        return lambda repeats: _score(repeats, *call)

    def _start(self, request: Request) -> tuple:
        parts = request.target, request.drafter, request.options
        return _start(*parts, *self.prompts[:2], self.prompts.capacity, self.platform)


@functools.partial(jax.jit, static_argnames=("capacity", "platform"))
def _start(target, drafter, options, prompts, lengths, capacity: int, platform):
    """What has read the prompts, ones [B] that lie where they do, counts, a feature.

    The feature [B, 1, F] is of no token, and None where the drafter reads none.
    """
    with on_platform(platform):
        cache, state = step.read_prompts(target, drafter, prompts, lengths, capacity)
        counts = count_text(options, prompts, lengths, target.vocab_size)
        feature = None
        if step.reads_features(drafter):
            rows = target, prompts, lengths, capacity
            like = jax.eval_shape(lambda: prefill_with_features(*rows)[1])
            feature = jnp.zeros((len(lengths), 1, like.shape[-1]), like.dtype)
        return cache, state, jnp.ones_like(lengths), counts, feature


@functools.partial(jax.jit, static_argnames="platform")
def _draft(
    repeats,
    keys: Array,
    first: Array,
    text: Text,
    last: Last,
    request: Request,
    platform: str | None,
) -> tuple[Proposal, Text]:
    """Text grows by its last token, and a tree is drawn; once and again."""
    depth = request.config.token_tree.depth
    token, count, feature = last

    def propose(index: Array, text: Text) -> tuple[Proposal, Text]:
        (state, counts), steps = text, jnp.broadcast_to(first + index, count.shape)
        own = step.step_keys(keys, steps)[0]
        proposal, state = step.propose(own, state, request, counts)
        return proposal, (state, counts)

    def body(index: Array, carry: tuple[Proposal, Text]):
        proposal, (state, counts) = carry
        again = index > 0
        written = jnp.where(again, proposal.tokens[:, -1], token)
        emitted = _one(written, jnp.where(again, 1, count), depth, feature)
        state = request.drafter.commit(state, emitted)
        counts = None if counts is None else counts.extended(emitted)
        return propose(index, (state, counts))

    with on_platform(platform):
        empty = _zeros(jax.eval_shape(propose, jnp.int32(0), text)[0])
        return jax.lax.fori_loop(0, repeats, body, (empty, text))


@functools.partial(jax.jit, static_argnames="platform")
def _score(
    repeats,
    cache: Cache,
    tokens: Array,
    count: Array,
    request: Request,
    platform: str | None,
) -> tuple[Array, Array | None, Cache]:
    """Text grows by `count [B]` tokens, and the target scores a tree, likewise.

    The logits are [V, B, N] where `step.verify` would bring them there. Between them
    and the cache is the feature [B, 1, F] of the root, for a drafter that reads it.
    """
    tree = request.config.token_tree

    def score(cache: Cache, tokens: Array):
        path = jnp.zeros((len(tokens), tree.depth), jnp.int32)
        cache = cache.keep_path(cache.length, path, count)
        logits, features, cache = step.score_as_read(cache, tokens, request)
        turned = step.by_columns(request.target)
        logits = jnp.moveaxis(logits, -1, 0) if turned else logits
        return logits, None if features is None else features[:, :1], cache

    def body(_, carry):
        *_, cache, tokens = carry
        # Other tokens each time, or layers would be computed once for all.
        following = (tokens + 1) % request.target.vocab_size
        return *score(cache, tokens), following

    with on_platform(platform):
        logits, feature = _zeros(jax.eval_shape(score, cache, tokens)[:2])
        carry = logits, feature, cache, tokens
        return jax.lax.fori_loop(0, repeats, body, carry)[:3]


@functools.partial(jax.jit, static_argnames="platform")
def _accept(
    repeats,
    keys: Array,
    steps: Array,
    proposal: Proposal,
    logits: Array,
    counts: TextCounts | None,
    request: Request,
    platform: str | None,
) -> tuple[Array, Array]:
    """What the rule accepts of drawn trees: [B, D]; and a token of the target's [B]."""
    tree, rule = request.config.token_tree, request.config.tree_verifier

    def row(index, key, tokens, laws, options, logits, broken):
        if step.by_columns(request.target):
            p = FilteredRows(logits, options, broken[index], index)
        else:
            p = FilteredRows(logits[index], options, broken[index])
        added = expected_by_level(rule, tree, tokens, p.shown_to(rule), laws)
        return added, categorical.sample(key, p[jnp.int32(0)])

    def body(_, carry):
        # Bound to the round before, or all rounds would be one.
        drawn, seen, _ = jax.lax.optimization_barrier((proposal, logits, carry))
        which = jnp.arange(len(keys))
        own = step.step_keys(keys, jnp.broadcast_to(steps, which.shape))[1]
        arrays = which, own, drawn.tokens, drawn.laws, request.options
        turned = step.by_columns(request.target)
        rows = jnp.moveaxis(seen, 0, -1) if turned else seen
        asked, broken = step.as_asked(rows, drawn.tokens, counts, request)
        asked = jnp.moveaxis(asked, -1, 0) if turned else asked
        return map_rows(lambda *own: row(*own, asked, broken), *arrays)

    with on_platform(platform):
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        carry = (
            jnp.zeros((len(keys), tree.depth), dtype),
            jnp.zeros(len(keys), jnp.int32),
        )
        return jax.lax.fori_loop(0, repeats, body, carry)


def _one(
    token: Array, count: Array, depth: int, feature: Array | None = None
) -> Emitted:
    """A step that emits `token [B]` where `count [B]` is 1, and nothing where it is 0.

    None of it had been drafted. The `feature [B, 1, F]` is of the token before it.
    """
    shape = (len(token), depth + 1)
    if feature is not None:
        feature = jnp.broadcast_to(feature, (*shape, feature.shape[-1]))
    return Emitted(
        tokens=jnp.broadcast_to(token[:, None], shape),
        count=count,
        node=jnp.zeros(shape, jnp.int32),
        from_draft=jnp.zeros(shape, bool),
        features=feature,
    )


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
