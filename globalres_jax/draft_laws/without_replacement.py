"""Different drafts: sampling without replacement."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.draft_laws import clocks
from globalres_jax.draft_laws.closed_form import ClosedForm, single_draft
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    check_num_drafts,
    checked_row,
    no_factors,
    ratio_order,
    root_scale,
    transform,
)
from globalres_jax.numerics.categorical import draw_without_replacement
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond

#: From these odds q / (1 - q) on, a token is drafted as good as surely.
_OUTWEIGHS = 300.0


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

    def __init__(self, probs: Array, num_drafts: int, max_support: int | None = None):
        self.num_drafts = check_num_drafts(num_drafts)
        probs = checked_row(probs, max_support, self.num_drafts)
        self._hold(probs, max_support, least=self.num_drafts)

    @property
    def exact_moments(self) -> bool:
        """Whether second moments are exact: for up to two drafts."""
        return self.num_drafts <= 2

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
            return jnp.where(own == token, 0, left), chance

        return jnp.prod(jax.lax.scan(draw, self.token_probs, draft_tokens)[1])

    def containment(self, members: Array) -> Array:
        """Q(H) for `members [k]` bool."""
        order = jnp.argsort(~members)
        return 1 - self.escape(order)[jnp.sum(members)]

    def moments(self, survive: Array) -> Moments:
        """Exact for n <= 2; for n >= 3 exact but for the covariance."""
        if self.num_drafts == 1:
            return _one_draft(self.token_probs[None], survive)
        if self.num_drafts == 2:
            return _two_drafts(self.token_probs[None], survive)
        value, mean = clocks.laplace(self.token_probs, self.num_drafts, survive)
        return _fixed_size(value, mean)

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
            # The first draft outside, or the first inside and the second outside.
            inside = jnp.cumsum(_odds(q))
            inside = jnp.concatenate([jnp.zeros(1, q.dtype), inside])
            return jnp.minimum(mass_beyond(q) * (1 + inside), 1)
        return clocks.escape(q, self.num_drafts)


def _others(weight: Array) -> Array:
    """Sum of all others [..., k], exact also for a token that outweighs them."""
    total = blockwise_sum(weight)[..., None]
    heaviest = jnp.argmax(weight, axis=-1, keepdims=True)
    place = jax.lax.broadcasted_iota(heaviest.dtype, weight.shape, weight.ndim - 1)
    is_heaviest = place == heaviest
    rest = blockwise_sum(jnp.where(is_heaviest, 0, weight))[..., None]
    left = jnp.where(is_heaviest, rest, total - weight)
    return jnp.maximum(left, jnp.finfo(weight.dtype).tiny)


def _odds(q: Array) -> Array:
    """q / (1 - q) [..., k]; no derivative where next to nothing is left of 1 - q."""
    others = _others(q)
    some = others > jnp.sqrt(jnp.finfo(q.dtype).tiny)
    bound = jax.lax.stop_gradient(q / others)
    return jnp.where(some, quotient(q, jnp.where(some, others, 1)), bound)


def _one_draft(q: Array, survive: Array) -> Moments:
    mean = q * survive
    value = transform(q, survive)
    none = no_factors(survive)
    return Moments(value, mean, mean, none, none)


def _two_drafts(q: Array, survive: Array) -> Moments:
    """L = sum_i rho_i e_i sum_{j != i} q_j e_j with rho_i = q_i / (1 - q_i).

    E[N_i N_j Z] is a_i b_j + b_i a_j for i != j, with a = rho e and b = q e; on the
    diagonal it is E[N_i Z]. Where one token outweighs the others by far, that would
    be a difference of large numbers, and the form for samples of fixed size is exact.
    """
    first = _odds(q)
    a, b = first * survive, q * survive
    after = _others(b)
    before = _others(a)
    value = blockwise_sum(a * after)
    mean = a * after + b * before
    half = jnp.sqrt(jnp.asarray(0.5, q.dtype))
    # a may be 1 / (1 - q_i) times b: halves of equal size keep the factors small.
    balance = jnp.sqrt(
        blockwise_sum(b)[:, None] / jnp.maximum(blockwise_sum(a), 1e-30)[:, None]
    )
    left, right = a * balance, b / jnp.maximum(balance, 1e-30)
    pairs = Moments(
        value,
        mean,
        mean - 2 * a * b,
        (half * (left + right))[None],
        (half * (left - right))[None],
    )
    outweighs = jnp.max(first) > _OUTWEIGHS
    return jax.tree.map(
        lambda x, y: jnp.where(outweighs, x, y), _fixed_size(value, mean), pairs
    )


def _fixed_size(value: Array, mean: Array) -> Moments:
    """Moments of a sample of fixed size from its inclusion probabilities alone.

    The covariance is taken to be diag(v) - v v^T / sum(v) (Hajek 1964), with v such
    that the variances r (1 - r) come out right. It only steers the solver.
    """
    root = root_scale(value)[:, None]
    chance = jnp.clip(mean * root * root, 0, 1)
    variance = chance * (1 - chance)
    spread = variance
    for _ in range(3):
        total = jnp.maximum(jnp.sum(spread, axis=1, keepdims=True), 1e-30)
        spread = variance / jnp.maximum(1 - spread / total, 0.5)
    total = jnp.maximum(jnp.sum(spread, axis=1, keepdims=True), 1e-30)
    scale = jnp.sqrt(jnp.maximum(value, 0))[:, None]
    return Moments(
        value,
        mean,
        value[:, None] * spread,
        (scale * chance)[None],
        (scale * spread * jax.lax.rsqrt(total))[None],
    )
