"""The decoding step: propose, score, verify, emit, commit.

Up to `tree.depth + 1` tokens a row for one call of the target. Every piece takes and
returns values; rows have their own lengths, keys, options and ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Cache, Emitted, Model, Proposal, State, Walk
from globalres_jax.decoding.config import SampledPolicy
from globalres_jax.decoding.emission import Ending, emit, with_features
from globalres_jax.decoding.log_probabilities import LogProbabilities, of_emitted
from globalres_jax.decoding.metrics import count_step
from globalres_jax.decoding.options import FilteredRows
from globalres_jax.decoding.penalties import TextCounts
from globalres_jax.decoding.scoring import as_asked, score_as_read
from globalres_jax.decoding.state import Request, StepState
from globalres_jax.numerics.rows import known_platform, map_rows
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers import optimum_along


def decode_step(
    state: StepState, request: Request
) -> tuple[StepState, Emitted, LogProbabilities | None]:
    """One step of all rows; those that have ended emit nothing.

    Log-probabilities of what is emitted are there if the config asks for them.
    """
    key_draft, key_verify = step_keys(state.keys, state.steps)
    proposal, draft = propose(key_draft, state.draft, request, state.counts)
    found = look(key_verify, state, proposal, request)
    emitted, ending, running = found.emitted, found.ending, state.budget > 0
    cache, draft = commit(found.cache, draft, emitted, request)
    tree, drafted = request.config.token_tree, proposal.drafted
    verified = found.walk, found.optimum
    following = StepState(
        keys=state.keys,
        steps=state.steps + running,
        budget=jnp.where(ending.ended, 0, state.budget - emitted.count),
        failed=state.failed | ending.failed,
        stopped=state.stopped | ending.stopped,
        cache=cache,
        draft=draft,
        metrics=count_step(state.metrics, tree, running, drafted, *verified),
        counts=None if state.counts is None else state.counts.extended(emitted),
    )
    return following, emitted, found.scores


def step_keys(keys: Array, steps: Array) -> tuple[Array, Array]:
    """Keys ([B], [B]) of one step, for drafting and for verification."""

    def row(key: Array, step: Array) -> tuple[Array, Array]:
        both = 2 * step + jnp.arange(2)
        return tuple(jax.vmap(jax.random.fold_in, (None, 0))(key, both))

    return jax.vmap(row)(keys, steps)


def propose(
    keys: Array, state: State, request: Request, counts: TextCounts | None = None
) -> tuple[Proposal, State]:
    """1. A tree of drafts for each row, whose text has these `counts`."""
    config, vocab_size = request.config, request.target.vocab_size
    policy = SampledPolicy(config, request.options, vocab_size, counts, request.ends)
    return request.drafter.propose(keys, state, config.token_tree, policy)


class Look(NamedTuple):
    """What a call of the target says of what was proposed.

    Attributes:
      walk: of each row, leaves [B, ...].
      optimum: [B, D] see `verify`.
      emitted: what becomes text.
      ending: which rows end with it.
      scores: its log-probabilities, None where nobody asked.
      cache: the target's, with the tree behind the text.
    """

    walk: Walk
    optimum: Array
    emitted: Emitted
    ending: Ending
    scores: LogProbabilities | None
    cache: Cache


def look(keys: Array, state: StepState, proposal: Proposal, request: Request) -> Look:
    """2 to 4: score, verify, emit; of the root alone where no row has drafts."""
    drafted = proposal.drafted
    if drafted is None:
        return _look(keys, state, proposal, request)
    alone = dataclasses.replace(request, config=request.config.plain())
    depth = request.config.token_tree.depth

    def at_root() -> Look:
        root = Proposal(proposal.tokens[:, :1], ())
        return _look(keys, state, root, alone, depth)

    def at_tree() -> Look:
        # Of one row it is then known.
        known = None if len(keys) == 1 else drafted
        return _look(keys, state, proposal._replace(drafted=known), request)

    return jax.lax.cond(jnp.any(drafted & (state.budget > 0)), at_tree, at_root)


def _look(
    keys: Array,
    state: StepState,
    proposal: Proposal,
    request: Request,
    depth: int = 0,
) -> Look:
    """`look` at a whole tree; as results for one of `depth` levels, if that is more."""
    logits, features, cache = score_as_read(state.cache, proposal.tokens, request)
    asked, broken = as_asked(logits, proposal.tokens, state.counts, request)
    walk, optimum = verify(keys, proposal, asked, broken, request)
    walk, optimum = _deepened(walk, depth), _padded(optimum, depth)
    emitted, ending = emit(walk, proposal.tokens, state.budget, request.ends, broken)
    emitted, scores = with_features(emitted, features), None
    if request.config.log_probabilities:
        top = request.config.top_log_probabilities
        scores = of_emitted(logits, asked, emitted, broken, request.options, top)
    return Look(walk, optimum, emitted, ending, scores, cache)


def _deepened(walk: Walk, depth: int) -> Walk:
    """Walks of a tree of fewer levels as those of one of `depth` levels."""
    return walk._replace(nodes=_padded(walk.nodes, depth))


def _padded(values: Array, size: int) -> Array:
    """`values [B, D]` with zeros behind them, [B, size] if that is more."""
    return jnp.pad(values, ((0, 0), (0, max(0, size - values.shape[1]))))


def _of_either(chosen: Array, first: Callable, second: Callable, key: Array, *args):
    """`first(key, *args)` where `chosen []`, else `second(key, *args)`.

    Of rows that go together both are computed, which a check for keys that are used
    twice would take for that; with numbers in place of the key it does not.
    """
    kind = jax.random.key_impl(key)

    def of_numbers(branch, numbers, *args):
        return branch(jax.random.wrap_key_data(numbers, impl=kind), *args)

    branches = (functools.partial(of_numbers, branch) for branch in (first, second))
    return jax.lax.cond(chosen, *branches, jax.random.key_data(key), *args)


def verify(
    keys: Array, proposal: Proposal, logits: Array, broken: Array, request: Request
) -> tuple[Walk, Array]:
    """3. A walk for each row; and the optimum at its nodes [B, D], NaN if not known.

    Rows that are `broken [B, N]` are shown as in `FilteredRows`.
    """
    config = request.config
    tree, rule = config.token_tree, config.tree_verifier
    rule.check(tree, proposal.laws)

    def row(key, tokens, p, laws, drafted) -> tuple[Walk, Array]:
        if drafted is None:
            return of_tree(key, tokens, p, laws)

        def of_root(key, tokens, p, laws) -> tuple[Walk, Array]:
            alone, optimum = config.plain(), jnp.zeros(tree.depth, p.dtype)
            rule = alone.tree_verifier
            root = alone.token_tree, tokens[:1], p.shown_to(rule), ()
            walk = rule.walk(key, *root)
            walk = walk._replace(
                nodes=jnp.zeros(tree.depth, walk.nodes.dtype), expected=optimum.sum()
            )
            return _complete(walk, tree, p.dtype), optimum

        return _of_either(drafted, of_tree, of_root, key, tokens, p, laws)

    def of_tree(key, tokens, p, laws) -> tuple[Walk, Array]:
        walk = rule.walk(key, tree, tokens, p.shown_to(rule), laws)
        if config.measure_optimum:
            optimum = optimum_along(tree, tokens, p, laws, walk)
        elif walk.optimum is not None:
            optimum = walk.optimum
        else:
            optimum = jnp.full(tree.depth, jnp.nan, p.dtype)
        return _complete(walk, tree, p.dtype), optimum

    arrays = keys, *proposal
    if not by_columns(request.target):

        def from_rows(key, tokens, laws, drafted, logits, broken, options):
            rows = FilteredRows(logits, options, broken)
            return row(key, tokens, rows, laws, drafted)

        return map_rows(from_rows, *arrays, logits, broken, request.options)

    columns = jnp.moveaxis(logits, -1, 0)

    def from_columns(key, tokens, laws, drafted, index, broken, options):
        rows = FilteredRows(columns, options, broken, index)
        return row(key, tokens, rows, laws, drafted)

    index = jnp.arange(len(keys))
    return map_rows(from_columns, *arrays, index, broken, request.options)


def _complete(walk: Walk, tree: TokenTree, dtype) -> Walk:
    """A walk without its optimum; its expected length is NaN if it is not known."""
    expected = walk.expected
    if expected is None:
        expected = jnp.full((), jnp.nan if tree.depth else 0)
    return walk._replace(optimum=None, expected=expected.astype(dtype))


def by_columns(target: Model) -> bool:
    """Whether logits lie by columns, and are better read so than turned over first."""
    lie_so = getattr(target.apply, "vocabulary_first", False)
    return lie_so and known_platform() == "cpu"


def commit(
    cache: Cache, draft: State, emitted: Emitted, request: Request
) -> tuple[Cache, State]:
    """5. Target and drafter keep what became text, and forget the rest of the tree.

    (4, what becomes text, is `emission.emit`.)
    """
    path = emitted.node[:, 1:]
    cache = cache.keep_path(cache.length, path, emitted.count)
    return cache, request.drafter.commit(draft, emitted)
