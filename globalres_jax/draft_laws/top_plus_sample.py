"""The likeliest tokens and one sample off them (Hu et al., arXiv 2502.18779)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import NO_TOKEN, Array
from globalres_jax.draft_laws.closed_form import ClosedForm, fixed_and_one
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    check_num_drafts,
    checked_row,
    transform,
)
from globalres_jax.numerics.categorical import draw
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import blockwise_sum, mass_beyond


class TopPlusSample(DraftLaw):
    """The n - 1 likeliest tokens of `probs`, then one draw from the others.

    With D those tokens and r = q off D, normalised: L(u) = exp(-sum_D u) phi_r(u) and
    Q(H) = r(H) if H holds D, else 0. (Two drafts: SpecHub's pairs, arXiv 2411.05289,
    up to their order.)

    Args:
      probs: [V] the draft model's distribution q.
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

    @property
    def top_places(self) -> Array:
        """[n - 1] the fixed drafts, as places among the law's tokens."""
        places = jax.lax.top_k(self.token_probs, self.num_drafts - 1)[1]
        return jnp.where(self.token_probs[places] > 0, places, NO_TOKEN)

    @property
    def top(self) -> Array:
        """[n - 1] the fixed drafts, likeliest first."""
        return self.name_places(self.top_places)

    @property
    def fixed(self) -> Array:
        """[k] bool, the tokens of D."""
        places = self.top_places
        # A negative index would count from the end.
        places = jnp.where(places >= 0, places, len(self.token_probs))
        return jnp.zeros(len(self.token_probs), bool).at[places].set(True, mode="drop")

    @property
    def proposal(self) -> Array:
        """r [k], the law of the last draft; zero where nothing is left to draw."""
        left = jnp.where(self.fixed, 0, self.token_probs)
        return quotient(left, blockwise_sum(left))

    def draw(self, numbers: Array) -> Array:
        """[n] int32: the fixed drafts, and last one by `numbers [n, UNIFORMS]`."""
        proposal = self.proposal
        last = draw(numbers[-1], proposal)
        last = jnp.where(proposal[last] > 0, last, NO_TOKEN)
        places = jnp.append(self.top_places, last).astype(jnp.int32)
        return self.name_places(places)

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        as_fixed = jnp.all(draft_tokens[:-1] == self.top)
        last = self.lookup(self.proposal, draft_tokens[-1:])[0]
        lacks = self._nothing_drawn & (draft_tokens[-1] == NO_TOKEN)
        return jnp.where(as_fixed, jnp.where(lacks, 1, last), 0)

    def containment(self, members: Array) -> Array:
        """r(H) if H (`members [k]` bool) holds D, else 0."""
        inside = jnp.sum(jnp.where(members, self.proposal, 0))
        inside = jnp.where(self._nothing_drawn, 1, inside)
        return jnp.where(jnp.all(members | ~self.fixed), inside, 0)

    def moments(self, survive: Array) -> Moments:
        """One count is random."""
        fixed, proposal = self.fixed[None], self.proposal[None]
        held = jnp.prod(jnp.where(fixed, survive, 1), axis=1)
        last = transform(proposal, survive)
        drawn = held[:, None] * proposal * survive
        value = held * last
        return Moments(value, value[:, None] * fixed + drawn)

    def closed_form(self, p: Array) -> ClosedForm:
        """The optimal race, without a solver."""
        return fixed_and_one(p, self.fixed, self.proposal)

    def subset_order(self, p: Array) -> Array:
        """D first, then the others by r/p descending."""
        proposal = self.proposal
        ratio = jnp.where(p > 0, proposal / jnp.where(p > 0, p, 1), jnp.inf)
        ratio = jnp.where((p == 0) & (proposal == 0), 0, ratio)
        return jnp.lexsort((-ratio, ~self.fixed))

    def escape(self, order: Array) -> Array:
        """[k + 1] 1 before D is held, then the mass of r left out."""
        held = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(self.fixed[order])])
        beyond = mass_beyond(self.proposal[order])
        return jnp.where(held < jnp.sum(self.fixed), 1, beyond)

    @property
    def _nothing_drawn(self) -> Array:
        """[] bool: the fixed drafts are all tokens that there are."""
        return ~jnp.any(self.proposal > 0)
