"""No drafts: plain decoding is speculation with a tree that is its root alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, DraftPolicy, Emitted, Proposal
from globalres_jax.tree import TokenTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NoDrafts:
    """Proposes nothing below the last token. Its state [B] is that token."""

    def check(self, tree: TokenTree, vocab_size: int) -> None:
        """ValueError if the tree is more than its root."""
        del vocab_size
        if tree.depth:
            raise ValueError(
                f"draft: None drafts nothing, got a tree {tree.depth} levels deep"
            )

    def start(self, prompts: Array, lengths: Array, capacity: int) -> Array:
        """The last token of each prompt: [B]."""
        del capacity
        return last_token(prompts, lengths)

    def propose(
        self, keys: Array, state: Array, tree: TokenTree, policy: DraftPolicy
    ) -> tuple[Proposal, Array]:
        """The root alone."""
        del keys, tree, policy
        return Proposal(state[:, None], ()), state

    def commit(self, state: Array, emitted: Emitted) -> Array:
        """The last emitted token."""
        return last_emitted(emitted, state)


def last_token(prompts: Array, lengths: Array, back: int = 1) -> Array:
    """[B] the token `back` places before the end of each prompt (or its first)."""
    index = jnp.maximum(lengths - back, 0)[:, None]
    return jnp.take_along_axis(prompts, index, axis=1)[:, 0]


def last_emitted(emitted: Emitted, otherwise: Array, back: int = 1) -> Array:
    """[B] the token `back` places before the end of what a step emitted.

    Where it emitted fewer: `otherwise [B]`.
    """
    index = jnp.maximum(emitted.count - back, 0)[:, None]
    token = jnp.take_along_axis(emitted.tokens, index, axis=1)[:, 0]
    return jnp.where(emitted.count >= back, token, otherwise)
