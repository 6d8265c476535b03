"""The parts of a decoding step, each compiled as a loop of its own.

A loop runs its part so many times, one after another, so that it can be timed; caches
are written in place, as they are in decoding.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, Emitted, Proposal, State
from globalres_jax.cache import prefill_with_features
from globalres_jax.decoding import scoring, step
from globalres_jax.decoding.config import SampledPolicy
from globalres_jax.decoding.options import OF_TEXT, FilteredRows
from globalres_jax.decoding.penalties import TextCounts, count_text
from globalres_jax.decoding.state import Request, read_prompts, reads_features
from globalres_jax.numerics import categorical
from globalres_jax.numerics.rows import map_rows, on_platform
from globalres_jax.tree_verifiers import expected_by_level

#: What a drafter knows of the text, and what options do.
Text = tuple[State, TextCounts | None]
#: The token [B] behind a text, and as `_one` has them its count and the feature before.
Last = tuple[Array, Array, Array | None]


@functools.partial(jax.jit, static_argnames=("capacity", "platform"))
def start(target, drafter, options, prompts, lengths, capacity: int, platform):
    """What has read the prompts, ones [B] that lie where they do, counts, a feature.

    The feature [B, 1, F] is of no token, and None where the drafter reads none.
    """
    with on_platform(platform):
        cache, state = read_prompts(target, drafter, prompts, lengths, capacity)
        counts = count_text(options, prompts, lengths, target.vocab_size)
        feature = None
        if reads_features(drafter):
            rows = target, prompts, lengths, capacity
            like = jax.eval_shape(lambda: prefill_with_features(*rows)[1])
            feature = jnp.zeros((len(lengths), 1, like.shape[-1]), like.dtype)
        return cache, state, jnp.ones_like(lengths), counts, feature


@functools.partial(jax.jit, static_argnames="platform")
def draft(
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
def draw(
    repeats, keys: Array, logits: Array, request: Request, platform: str | None
) -> Array:
    """A draft [B] from the law of `logits [B, 1, V]`; once and again."""
    config, vocab_size = request.config, request.target.vocab_size
    # What depends on the text costs the same by all laws.
    options = dataclasses.replace(
        request.options, **dict.fromkeys(OF_TEXT), logit_bias=None
    )
    policy = SampledPolicy(config, options, vocab_size, None, request.ends)

    def body(_, drawn):
        # Bound to the round before, or all rounds would be one.
        seen, _ = jax.lax.optimization_barrier((logits, drawn))
        laws = policy.law(seen, 0, 1)
        numbers = jax.vmap(lambda key: categorical.uniforms(key, (1,)))(keys)
        one = jax.vmap(lambda law, own: law.draw(own))
        return one(jax.tree.map(lambda x: x[:, 0], laws), numbers)[:, 0]

    with on_platform(platform):
        return jax.lax.fori_loop(0, repeats, body, jnp.zeros(len(keys), jnp.int32))


@functools.partial(jax.jit, static_argnames="platform")
def score(
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
        logits, features, cache = scoring.score_as_read(cache, tokens, request)
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
def accept(
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
        asked, broken = scoring.as_asked(rows, drawn.tokens, counts, request)
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
