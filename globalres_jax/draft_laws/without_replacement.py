"""Different drafts: sampling without replacement."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import NO_TOKEN, Array
from globalres_jax.draft_laws import clocks
from globalres_jax.draft_laws.closed_form import ClosedForm, single_draft
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    check_num_drafts,
    checked_row,
    ratio_order,
    transform,
)
from globalres_jax.numerics.categorical import draw_without_replacement
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond


class WithoutReplacement(DraftLaw):
    """`num_drafts` draws from `probs`, each among the tokens not drawn before.

    Two drafts have L in closed form; for more it is an integral over exponential
    clocks (`clocks.py`).

    Args:
      probs: [V] the draft model's distribution q; rounding in its sum is removed.
      num_drafts: n, at most V.
      max_support: the law is on so many likeliest tokens of `probs` (n at least).

    Raises:
      ValueError: `probs` is no distribution, `num_drafts < 1`, or fewer than
        `num_drafts` tokens have probability above zero. Where `probs` is traced the
        drafts that are lacking are `NO_TOKEN`, and all rules stay lossless.
    """

    may_lack = True

    def __init__(self, probs: Array, num_drafts: int, max_support: int | None = None):
        self.num_drafts = check_num_drafts(num_drafts)
        probs = checked_row(probs, max_support, self.num_drafts)
        self._hold(probs, max_support, least=self.num_drafts)

    def draw(self, numbers: Array) -> Array:
        """Draws the drafts from `numbers [n, UNIFORMS]`: [n] int32, in their order."""
        return self.name_places(draw_without_replacement(numbers, self.token_probs))

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        own = jnp.arange(self.vocab_size) if self.tokens is None else self.tokens

        def draw(left, token):
            total = jnp.sum(left)
            chance = self.lookup(left, token[None])[0]
            chance = chance / jnp.where(total > 0, total, 1)
            lacks = (total == 0) & (token == NO_TOKEN)
            return jnp.where(own == token, 0, left), jnp.where(lacks, 1, chance)

        return jnp.prod(jax.lax.scan(draw, self.token_probs, draft_tokens)[1])

    def containment(self, members: Array) -> Array:
        """Q(H) for `members [k]` bool."""
        order = jnp.argsort(~members)
        return 1 - self.escape(order)[jnp.sum(members)]

    def moments(self, survive: Array) -> Moments:
        """In closed form for n <= 2; by clocks for more."""
        if self.num_drafts == 1:
            q = self.token_probs[None]
            return Moments(transform(q, survive), q * survive)
        if self.num_drafts == 2:
            return _two_drafts(self.token_probs[None], survive)
        return Moments(*clocks.laplace(self.token_probs, self.num_drafts, survive))

    def rough_counts(self) -> Array:
        """[k] chance of each token to be drafted; for n >= 3 about that."""
        if self.num_drafts <= 2:
            return super().rough_counts()
        return clocks.rough_counts(self.token_probs, self.num_drafts)

    def closed_form(self, p: Array) -> ClosedForm | None:
        """The optimal race for one draft, None for more."""
        if self.num_drafts > 1:
            return None
        return single_draft(p, self.token_probs)

    def subset_order(self, p: Array) -> Array:
        """By q/p descending."""
        return ratio_order(p, self.token_probs)

    def escape(self, order: Array) -> Array:
        """[k + 1] 1 - Q(H) for the prefixes H."""
        q = self.token_probs[order]
        if self.num_drafts == 1:
            return mass_beyond(q)
        if self.num_drafts == 2:
            return _two_escape(q)
        return clocks.escape(q, self.num_drafts)


def _others(weight: Array) -> Array:
    """Sum of all others [..., k], exact also for a token that outweighs them."""
    total = blockwise_sum(weight)[..., None]
    is_heaviest = _is_heaviest(weight)
    rest = blockwise_sum(jnp.where(is_heaviest, 0, weight))[..., None]
    return jnp.where(is_heaviest, rest, jnp.maximum(total - weight, 0))


def _is_heaviest(weight: Array) -> Array:
    """[..., k] bool: True for one token that has the largest weight."""
    heaviest = jnp.argmax(weight, axis=-1, keepdims=True)
    place = jax.lax.broadcasted_iota(heaviest.dtype, weight.shape, weight.ndim - 1)
    return place == heaviest


def _second_draft(q: Array) -> tuple[Array, Array, Array]:
    """What a second draft sees, with no number that may overflow.

    Returns:
      [..., k] bool, the likeliest token h; q / (1 - q_h), the law after h (zero if h is
      all there is); q / (1 - q) of the other tokens, each at most 1.
    """
    is_heaviest = _is_heaviest(q)
    left = jnp.where(is_heaviest, 0, q)
    total = blockwise_sum(left)[..., None]
    odds = quotient(left, jnp.where(is_heaviest, 1, 1 - left))
    return is_heaviest, quotient(left, total), odds


def _two_drafts(q: Array, survive: Array) -> Moments:
    """L = sum_i q_i / (1 - q_i) e_i sum_{j != i} q_j e_j.

    The likeliest token h, whose first factor has no bound, has a row and a column of
    its own: q_h e_h (sum_j after_j e_j), where `after` is the law of the second draft.
    """
    is_heaviest, after, odds = _second_draft(q)
    weighted = q * survive
    head = blockwise_sum(jnp.where(is_heaviest, weighted, 0))[:, None]
    others = _others(weighted)
    tail = blockwise_sum(after * survive)[:, None]
    # Alone, h is the only draft.
    tail = jnp.where(jnp.any(after > 0, keepdims=True), tail, 1)
    first = odds * survive
    before = blockwise_sum(first)[:, None]
    value = head * tail + blockwise_sum(first * others)[:, None]
    mean = first * others + after * survive * head + weighted * _others(first)
    mean = jnp.where(is_heaviest, head * (tail + before), mean)
    return Moments(value[:, 0], mean)


def _two_escape(q: Array) -> Array:
    """[k + 1] 1 - Q(H): the first draft outside H, or inside and the second outside."""
    is_heaviest, after, odds = _second_draft(q)
    inside = jnp.concatenate([jnp.zeros(1, q.dtype), jnp.cumsum(odds)])
    head = jnp.concatenate([jnp.zeros(1, q.dtype), jnp.cumsum(is_heaviest * q)])
    escape = mass_beyond(q) * (1 + inside) + head * mass_beyond(after)
    return jnp.minimum(escape, 1)
