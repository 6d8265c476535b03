"""What the text so far does to the next token's logits: penalties and a least length.

At a node of a token tree the text so far is what has been committed and the path from
the root down to the node. Target and draft are shown the same text, and what is drawn
is what is verified; the law of the text is that of plain decoding with these options.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Emitted
from globalres_jax.cache import write_slots
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.tree import TokenTree


class TextCounts(NamedTuple):
    """What the options need to know of the text of each row, and no more.

    Attributes:
      written: [B] number of tokens that have been emitted.
      output: [B, V] int32 how often each of them, None without penalties.
      prompt: [B, V] bool whether the prompt has it, None without repetition penalty.
    """

    written: Array
    output: Array | None
    prompt: Array | None

    def extended(self, emitted: Emitted) -> TextCounts:
        """The counts after a step."""
        output, (batch, width) = self.output, emitted.tokens.shape
        if output is not None:
            kept = jnp.arange(width)[None, :] < emitted.count[:, None]
            tokens = jnp.where(kept, emitted.tokens, output.shape[1])
            rows = jnp.arange(batch)[:, None]
            output = output.at[rows, tokens].add(1, mode="drop")
        return TextCounts(self.written + emitted.count, output, self.prompt)


def count_text(
    options: SamplingOptions, prompts: Array, lengths: Array, vocab_size: int
) -> TextCounts | None:
    """The counts before the first step; None where no option asks for them.

    Args:
      options: of the rows.
      prompts: [B, P] tokens, padded on the right with anything.
      lengths: [B] tokens of each prompt.
      vocab_size: V.
    """
    if not options.reads_text:
        return None
    (batch, width), output, prompt = prompts.shape, None, None
    if options.has_penalties:
        output = jnp.zeros((batch, vocab_size), jnp.int32)
    if options.repetition_penalty is not None:
        kept = jnp.arange(width)[None, :] < lengths[:, None]
        tokens = jnp.where(kept, prompts, vocab_size)
        nothing = jnp.zeros((batch, vocab_size), bool)
        prompt = write_slots(nothing, tokens, jnp.ones_like(kept))
    return TextCounts(jnp.zeros(batch, jnp.int32), output, prompt)


def paths_of(tree: TokenTree, tokens: Array) -> Array:
    """[B, N, D] the tokens below the root down to each node, -1 where there are none.

    Args:
      tree: shape of the tree.
      tokens: [B, N] token at each node.
    """
    places = jnp.asarray(tree.lines)
    return jnp.where(places >= 0, tokens[:, places], -1)


def adjusted(
    logits: Array,
    paths: Array,
    options: SamplingOptions,
    counts: TextCounts | None,
    ends: Array,
) -> Array:
    """Logits after the options that come before temperature: bias, penalties, ends.

    In this order: the bias is added; logits of tokens in prompt or output are divided
    by the repetition penalty where they are positive and multiplied by it where not
    (arXiv 1909.05858); the frequency penalty times the number of times that the output
    has the token is taken off, and the presence penalty if it has it at all; tokens
    that end a row whose output is shorter than `min_new_tokens` are forbidden.

    Args:
      logits: [B, W, V] after some nodes of a token tree.
      paths: [B, W, L] tokens below the root down to each node, in any order, -1 for
        none.
      options: of the rows, arrays [B].
      counts: of the committed text, with the root.
      ends: [B, E] tokens that end a row, -1 for none.

    Returns:
      [B, W, V] float32 or wider; `logits` themselves where nothing is asked for.
    """
    if not options.changes_logits:
        return logits
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def row(logits, paths, options, counts, ends):
        return jax.vmap(
            lambda logits, path: _of_node(logits, path, options, counts, ends)
        )(logits, paths)

    return jax.vmap(row)(logits, paths, options, counts, ends)


def _of_node(
    logits: Array,
    path: Array,
    options: SamplingOptions,
    counts: TextCounts | None,
    ends: Array,
) -> Array:
    """`adjusted` of one node: logits [V], path [L]; all else of one row."""
    if options.logit_bias is not None:
        logits = options.logit_bias.added_to(logits)
    if options.has_penalties:
        output = counts.output
        known = output > 0
        if counts.prompt is not None:
            known = known | counts.prompt
        # Few tokens are on the path, and theirs alone is another number than the
        # committed text's.
        slots = jnp.maximum(path, 0)
        times = jnp.sum(path[:, None] == path[None, :], axis=1)
        theirs = _penalised(logits[slots], output[slots] + times, True, options)
        logits = _penalised(logits, output, known, options)
        slots = jnp.where(path < 0, len(logits), path)
        logits = logits.at[slots].set(theirs, mode="drop")
    if options.min_new_tokens is not None:
        written = counts.written + jnp.sum(path >= 0)
        forbidden = (written < options.min_new_tokens) & (ends >= 0)
        slots = jnp.where(forbidden, ends, len(logits))
        logits = logits.at[slots].set(-jnp.inf, mode="drop")
    return logits


def _penalised(
    logits: Array, output: Array, known: Array | bool, options: SamplingOptions
) -> Array:
    """Logits of tokens that the output has so often, or that it or the prompt has."""
    if options.repetition_penalty is not None:
        by = options.repetition_penalty
        repeated = jnp.where(logits > 0, logits / by, logits * by)
        logits = jnp.where(known, repeated, logits)
    if options.frequency_penalty is not None:
        logits = logits - options.frequency_penalty * output
    if options.presence_penalty is not None:
        logits = logits - jnp.where(output > 0, options.presence_penalty, 0)
    return logits
