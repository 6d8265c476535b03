"""Decoding: prefill, then one `lax.while_loop` whose body is the decoding step.

Draft a tree, score all its nodes with one target call, verify, commit, emit. Rows of
a batch have their own lengths, keys and stops, and nothing leaves the device inside
the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Cache, Model
from globalres_jax.cache import write_slots
from globalres_jax.validation import is_concrete
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.drafters.model import draft_tree
from globalres_jax.decoding.metrics import Metrics, count_step, empty_metrics
from globalres_jax.drafters.prompt_lookup import PromptLookup
from globalres_jax.sharding import gather, mesh_of, place_rows
from globalres_jax.tree import tree_mask
from globalres_jax.tree_verifiers.top_down import plan_tree, walk_tree


class DecodeState(NamedTuple):
    """Carry of the decoding loop.

    Attributes:
      keys: [B] random key of each row.
      step: [] number of steps done.
      target_cache: committed tokens of each row, all but the last emitted one.
      draft_cache: likewise; the text [B, S] for `PromptLookup`, None without a draft.
      previous: [B] the last committed token.
      root: [B] the last emitted token, to be fed next.
      tokens: [B, T] emitted tokens, `pad_id` beyond `lengths`.
      from_draft: [B, T] whether the token had been drafted.
      lengths: [B] number of emitted tokens.
      finished: [B] whether the row has stopped.
      metrics: counts.
    """

    keys: Array
    step: Array
    target_cache: Cache
    draft_cache: Cache
    previous: Array
    root: Array
    tokens: Array
    from_draft: Array
    lengths: Array
    finished: Array
    metrics: Metrics


class Generation(NamedTuple):
    """Result of `generate`.

    Attributes:
      tokens: [B, max_new_tokens] int32, `pad_id` beyond `lengths`; an EOS that ended
        a row is its last token.
      lengths: [B] number of tokens emitted.
      from_draft: [B, max_new_tokens] bool, the token had been drafted.
      metrics: counts and rates, see `Metrics`.
    """

    tokens: Array
    lengths: Array
    from_draft: Array
    metrics: Metrics


def prefill(model: Model, prompts: Array, lengths: Array, capacity: int) -> Cache:
    """A cache that holds all but the last token of each prompt.

    Args:
      model: target or draft.
      prompts: [B, P] tokens, padded on the right.
      lengths: [B] tokens of each prompt, at least 1.
      capacity: slots of the cache.
    """
    batch, width = prompts.shape
    slots = jnp.arange(capacity)[None, None, :]
    positions = jnp.broadcast_to(jnp.arange(width)[None], (batch, width))
    mask = jnp.broadcast_to(
        slots <= jnp.arange(width)[None, :, None], (batch, width, capacity)
    )
    cache = model.init_cache(batch, capacity)
    _, cache = model.apply(model.params, prompts, positions, cache, mask)
    return cache._replace(length=lengths - 1)


def step_keys(keys: Array, step: Array) -> tuple[Array, Array]:
    """Keys ([B], [B]) of one step, for drafting and for verification."""

    def row(key: Array) -> tuple[Array, Array]:
        key_draft, key_verify = jax.random.split(jax.random.fold_in(key, step))
        return key_draft, key_verify

    return jax.vmap(row)(keys)


def decode_step(
    state: DecodeState,
    target: Model,
    draft: Model | PromptLookup | None,
    config: SpeculativeConfig,
    eos_ids: Array,
) -> DecodeState:
    """One step: up to `tree.depth + 1` tokens a row for one target call."""
    tree, law = config.tree, config.draft_law
    base = state.target_cache.length
    key_draft, key_verify = step_keys(state.keys, state.step)

    # 1. Draft.
    if isinstance(draft, PromptLookup):
        guess = draft.draft(state.draft_cache, base + 1, tree.depth)
        nodes = jnp.concatenate([state.root[:, None], guess], axis=1)
        q = jax.nn.one_hot(guess, target.vocab_size)
        law = functools.partial(config.law, max_support=1)
    elif tree.depth:
        drafted = draft_tree(
            key_draft,
            draft,
            state.draft_cache,
            state.previous,
            state.root,
            tree,
            law,
            config.to_probabilities,
        )
        nodes, q = drafted.tokens, drafted.q
    else:
        nodes = state.root[:, None]

    # 2. Score all nodes with one target call.
    mask = tree_mask(tree, np.arange(tree.num_nodes), base, state.target_cache.capacity)
    positions = base[:, None] + jnp.asarray(tree.depths)[None, :]
    logits, target_cache = target.apply(
        target.params, nodes, positions, state.target_cache, mask
    )
    p = config.to_probabilities(logits)

    # 3. Plan every node in one vmapped solve, then walk.
    if tree.depth:
        laws, plans = jax.vmap(
            lambda tokens, p, q: plan_tree(tree, tokens, p, q, law, config.verifier)
        )(nodes, p, q)
    else:
        laws, plans = (), ()
    walk = jax.vmap(
        lambda key, tokens, p, laws, plans: walk_tree(
            key, tree, tokens, p, laws, plans, config.verifier, config.measure_optimum
        )
    )(key_verify, nodes, p, laws, plans)

    # 4. Emit up to EOS or the cap; a finished row emits nothing.
    index = jnp.arange(tree.depth + 1)[None, :]
    emitted = index <= walk.accept_length[:, None]
    is_eos = emitted & jnp.any(walk.tokens[..., None] == eos_ids[None, None], axis=-1)
    stop = jnp.where(jnp.any(is_eos, 1), jnp.argmax(is_eos, 1), tree.depth)
    room = state.tokens.shape[1] - state.lengths
    kept = emitted & (index <= stop[:, None]) & (index < room[:, None])
    kept = kept & ~state.finished[:, None]
    count = jnp.sum(kept, 1)
    slots = jnp.where(kept, state.lengths[:, None] + index, state.tokens.shape[1])
    lengths = state.lengths + count
    finished = state.finished | jnp.any(is_eos & kept, 1)
    finished = finished | (lengths >= state.tokens.shape[1])

    # 5. Commit the accepted path; a row that has ended stays where it is.
    advance = jnp.where(state.finished, 0, walk.accept_length + 1)

    def settle(cache: Cache) -> Cache:
        return cache.keep_path(base, walk.nodes, advance)

    def last(tokens_of_row: Array, back: Array) -> Array:
        """The token `back` places before the end of root + emitted tokens."""
        return tokens_of_row[back]

    if isinstance(draft, PromptLookup):
        draft_cache = draft.extend(state.draft_cache, base, walk.tokens)
    else:
        draft_cache = settle(drafted.cache) if tree.depth else None
    text = jnp.concatenate([state.root[:, None], walk.tokens], axis=1)
    root = jax.vmap(last)(text, walk.accept_length + 1)
    previous = jax.vmap(last)(text, walk.accept_length)
    ended = state.finished
    return DecodeState(
        keys=state.keys,
        step=state.step + 1,
        target_cache=settle(target_cache),
        draft_cache=draft_cache,
        previous=jnp.where(ended, state.previous, previous),
        root=jnp.where(ended, state.root, root),
        tokens=write_slots(state.tokens, slots, walk.tokens),
        from_draft=write_slots(
            state.from_draft, slots, index < walk.accept_length[:, None]
        ),
        lengths=lengths,
        finished=finished,
        metrics=count_step(
            state.metrics,
            ~ended,
            walk.accept_length,
            walk.optimum,
            tree.num_nodes - 1,
        ),
    )


def generate(
    key: Array,
    target: Model,
    draft: Model | PromptLookup | None,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int = 64,
    eos_id: int | Sequence[int] | None = None,
) -> Generation:
    """Samples continuations from the target, exactly, with the draft's help.

    Args:
      key: one random key, of which row i uses `fold_in(key, i)`, or [B] keys, one a
        row. A row's tokens depend on its own key and prompt alone.
      target: the model whose distribution the text has.
      draft: a cheaper model over the same vocabulary, or a `PromptLookup`; None for
        plain decoding.
      prompts: [B, P] integer tokens, padded on the right with any valid token.
      prompt_lengths: [B] number of tokens in each prompt, 1..P.
      config: options; `SpeculativeConfig()` if None.
      max_new_tokens: length cap of every row.
      eos_id: token that ends a row, or several, or None.

    Returns:
      A `Generation`.

    Raises:
      ValueError: an empty or over-long prompt, vocabularies that differ, or a cache
        too short for prompt, text and draft.
    """
    config = SpeculativeConfig() if config is None else config
    if draft is None:
        config = config.plain()
    prompts, prompt_lengths = jnp.asarray(prompts), jnp.asarray(prompt_lengths)
    capacity = _check_request(
        target, draft, prompts, prompt_lengths, config, max_new_tokens
    )
    if jnp.ndim(key) == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(prompts)))
    ends = np.atleast_1d(-1 if eos_id is None else eos_id).astype(np.int32)
    mesh = mesh_of(target.params)
    key, prompts, prompt_lengths = place_rows(mesh, (key, prompts, prompt_lengths))
    return _generate(
        key,
        target,
        draft if config.tree.depth else None,
        prompts.astype(jnp.int32),
        prompt_lengths.astype(jnp.int32),
        jnp.asarray(ends),
        config=config,
        max_new_tokens=max_new_tokens,
        capacity=capacity,
        mesh=mesh,
    )


@functools.partial(
    jax.jit, static_argnames=("config", "max_new_tokens", "capacity", "mesh")
)
def _generate(
    keys,
    target,
    draft,
    prompts,
    lengths,
    eos_ids,
    *,
    config,
    max_new_tokens,
    capacity,
    mesh=None,
) -> Generation:
    batch = prompts.shape[0]

    def at(offset: Array) -> Array:
        index = jnp.maximum(offset, 0)[:, None]
        return jnp.take_along_axis(prompts, index, axis=1)[:, 0]

    state = DecodeState(
        keys=keys,
        step=jnp.zeros((), jnp.int32),
        target_cache=prefill(target, prompts, lengths, capacity),
        draft_cache=_start_draft(draft, prompts, lengths, capacity),
        previous=at(lengths - 2),
        root=at(lengths - 1),
        tokens=jnp.full((batch, max_new_tokens), config.pad_id, jnp.int32),
        from_draft=jnp.zeros((batch, max_new_tokens), bool),
        lengths=jnp.zeros(batch, jnp.int32),
        finished=jnp.zeros(batch, bool),
        metrics=empty_metrics(batch, config.tree.depth),
    )
    state = jax.lax.while_loop(
        lambda state: ~jnp.all(state.finished),
        lambda state: decode_step(state, target, draft, config, eos_ids),
        state,
    )
    result = Generation(state.tokens, state.lengths, state.from_draft, state.metrics)
    return gather(mesh, result)


def _start_draft(draft, prompts: Array, lengths: Array, capacity: int) -> Cache:
    """What the draft knows of the prompts."""
    if draft is None:
        return None
    if isinstance(draft, PromptLookup):
        return draft.history(prompts, capacity)
    return prefill(draft, prompts, lengths, capacity)


def _check_request(
    target: Model,
    draft: Model | PromptLookup | None,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig,
    max_new_tokens: int,
) -> int:
    """Checks what can be seen before compiling; returns the cache length."""
    if isinstance(draft, PromptLookup):
        draft.check(config.tree)
    elif draft is not None and draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"draft: has {draft.vocab_size} tokens, the target {target.vocab_size}; "
            "they must share one vocabulary"
        )
    if prompts.ndim != 2 or not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise ValueError(
            "prompts: expected integers of shape [B, P], got "
            f"{prompts.dtype} {prompts.shape}"
        )
    batch, width = prompts.shape
    if width == 0:
        raise ValueError("prompts: empty; a prompt has at least one token")
    if prompt_lengths.shape != (batch,):
        raise ValueError(
            f"prompt_lengths: expected shape ({batch},), got {prompt_lengths.shape}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {max_new_tokens}")
    if is_concrete(prompts, prompt_lengths):
        lengths, tokens = np.asarray(prompt_lengths), np.asarray(prompts)
        if lengths.min(initial=1) < 1:
            raise ValueError("prompt_lengths: an empty prompt; at least one token each")
        if lengths.max(initial=1) > width:
            raise ValueError(
                f"prompt_lengths: {lengths.max()} tokens in prompts of width {width}"
            )
        used = tokens[np.arange(width)[None, :] < lengths[:, None]]
        if used.size and not 0 <= used.min() <= used.max() < target.vocab_size:
            raise ValueError(
                f"prompts: tokens must lie in [0, {target.vocab_size}), got "
                f"{used.min()}..{used.max()}"
            )
    nodes = config.tree.num_nodes
    needed = width + max_new_tokens + nodes
    capacity = needed if config.cache_length is None else config.cache_length
    if nodes > capacity:
        raise ValueError(
            f"cache_length: a draft of {nodes} nodes does not fit {capacity} slots"
        )
    if width > capacity:
        raise ValueError(
            f"cache_length: a prompt of {width} tokens does not fit {capacity} slots"
        )
    if needed > capacity:
        raise ValueError(
            f"cache_length: {width} prompt tokens, {max_new_tokens} new ones and a "
            f"draft of {nodes} nodes need {needed} slots, got {capacity}"
        )
    return capacity
