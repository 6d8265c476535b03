"""One drafted tree to look at: what `generate` drafts first, and what verifies it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import as_program
from globalres_jax.decoding.progress import STATIC
from globalres_jax.decoding.scoring import as_asked, score_as_read
from globalres_jax.decoding.state import Request, first_state
from globalres_jax.decoding.step import propose, step_keys
from globalres_jax.numerics.rows import on_platform


class DraftedTree(NamedTuple):
    """A tree of each row, and all that a rule sees of it.

    `drafted.row(i)` is one of them, and `rule.walk(key, tree, tokens, p, laws)` what a
    rule makes of that.

    Attributes:
      keys: [B] keys that the step of `generate` verifies with.
      tokens: [B, N] token at each node, that of the root the last one of the prompt.
      p: [B, N, V] target distribution after each node, after all sampling options.
      laws: for each of the tree's `groups` the draft laws of its nodes, stacked, with
        leaves [B, W, ...].
    """

    keys: Array
    tokens: Array
    p: Array
    laws: tuple

    def row(self, index: int) -> DraftedTree:
        """The tree of one row, without the axis B."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def draft_tree(
    key: Array,
    target: Model,
    draft: Model | Drafter,
    prompts: Array,
    prompt_lengths: Array,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    eos_id: int | Sequence[int] | Array | None = None,
    options: SamplingOptions | None = None,
) -> DraftedTree:
    """Drafts the tree that `generate` with these arguments drafts first.

    So that rules can be compared on the same tree, or one be drawn
    (`globalres_jax.drawing`): the config's `token_tree` is its shape. For the arguments
    and errors see `generate`.

    Args:
      key: one random key, or [B].
      target: the model whose distribution the text has.
      draft: a cheaper model, or another `Drafter`.
      prompts: [B, P] integer tokens, padded on the right.
      prompt_lengths: [B] number of tokens in each prompt.
      config: the tree's shape, its laws and what sampling needs.
      max_new_tokens: room that the caches have; the tree does not depend on it.
      eos_id: tokens that the option `min_new_tokens` forbids; the target's if None.
      options: sampling options for each row, in place of the config's.

    Returns:
      A `DraftedTree`.
    """
    program = as_program(
        key,
        target,
        draft,
        prompts,
        prompt_lengths,
        config,
        max_new_tokens,
        eos_id,
        options,
    )
    return _draft(*program.arrays, **program.static)


@functools.partial(jax.jit, static_argnames=STATIC)
def _draft(
    target,
    drafter,
    keys,
    prompts,
    lengths,
    budget,
    ends,
    options,
    *,
    config: SpeculativeConfig,
    capacity: int,
    platform: str | None = None,
    **_unused,
) -> DraftedTree:
    with on_platform(platform):
        request = Request(target, drafter, options, ends, config)
        state = first_state(request, keys, prompts, lengths, budget, capacity)
        key_draft, key_verify = step_keys(state.keys, state.steps)
        proposal, _ = propose(key_draft, state.draft, request, state.counts)
        logits, _, _ = score_as_read(state.cache, proposal.tokens, request)
        asked, _ = as_asked(logits, proposal.tokens, state.counts, request)
        p = request.options.to_probabilities(asked)
        return DraftedTree(key_verify, proposal.tokens, p, proposal.laws)
