"""Independent draws from one distribution."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.draft_laws.closed_form import ClosedForm, single_draft
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    check_num_drafts,
    checked_row,
    ratio_order,
    transform,
)
from globalres_jax.numerics.categorical import draw_independent
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.numerics.sums import mass_beyond
from globalres_jax.validation import is_concrete


class IID(DraftLaw):
    """`num_drafts` independent draws from `probs`.

    L(u) = phi(u)^n with phi(u) = sum_i q_i exp(-u_i); Q(H) = q(H)^n.

    Args:
      probs: [V] the draft model's distribution q; rounding in its sum is removed.
      num_drafts: an `int` is part of the type (it fixes shapes and lets `sample`
        run); an integer array is data, so one compiled solve serves every n.
      max_support: the law is on so many likeliest tokens of `probs` (as top-k
        filtering leaves); sampler and solver then see those alone.
      max_drafts: most drafts where `num_drafts` is data; some rules ask for it.

    Raises:
      ValueError: `probs` is no distribution, `num_drafts < 1`, or more than
        `max_support` tokens have probability above zero. (Traced values cannot be
        counted: then the law is on the `max_support` likeliest.)
    """

    joins = True

    def __init__(
        self,
        probs: Array,
        num_drafts: int | Array,
        max_support: int | None = None,
        max_drafts: int | None = None,
    ):
        probs = checked_row(probs, max_support)
        if is_concrete(num_drafts):
            check_num_drafts(num_drafts)
        self._hold(probs, max_support, least=1)
        self.num_drafts = num_drafts
        self._max_drafts = max_drafts

    @property
    def is_fixed(self) -> bool:
        """Whether `num_drafts` is part of the type, not data."""
        return isinstance(self.num_drafts, int | np.integer)

    @property
    def max_drafts(self) -> int | None:
        """Most drafts that there can be, None where nobody said."""
        return int(self.num_drafts) if self.is_fixed else self._max_drafts

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [num_drafts] int32. Needs `num_drafts` to be an int."""
        if not self.is_fixed:
            raise ValueError(
                "num_drafts: sample needs a Python int, since it fixes the shape; "
                f"got {self.num_drafts!r}"
            )
        return super().sample(key)

    def draw(self, numbers: Array) -> Array:
        """`sample` from uniform `numbers [n, UNIFORMS]`."""
        return self.name_places(draw_independent(numbers, self.token_probs))

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order."""
        return jnp.prod(self.lookup(self.token_probs, draft_tokens))

    def joined(self, num_drafts: Array, most: int) -> IID:
        """The law of another number of draws, at most `most`."""
        children = (self.tokens, self.token_probs)
        if most == 1:
            return self.tree_unflatten((1, None, self.vocab_size), children)
        static = (None, most, self.vocab_size)
        return self.tree_unflatten(static, (*children, num_drafts))

    def containment(self, members: Array) -> Array:
        """Q(H), the probability that every draft lies in H (`members [k]` bool)."""
        inside = jnp.sum(jnp.where(members, self.token_probs, 0))
        return inside**self.num_drafts

    def moments(self, survive: Array) -> Moments:
        """phi^n, and n phi^(n-1) q e."""
        n, q = self.num_drafts, self.token_probs[None]
        phi = transform(q, survive)
        return Moments(phi**n, n * (phi ** (n - 1))[:, None] * q * survive)

    def closed_form(self, p: Array) -> ClosedForm | None:
        """The optimal race for one draft, None where there may be more."""
        if self.is_fixed and self.num_drafts == 1:
            return single_draft(p, self.token_probs)
        return None

    def subset_order(self, p: Array) -> Array:
        """By q/p descending."""
        return ratio_order(p, self.token_probs)

    def escape(self, order: Array) -> Array:
        """[k + 1] 1 - q(H)^n for the prefixes H."""
        return one_minus_power(mass_beyond(self.token_probs[order]), self.num_drafts)

    def tree_flatten(self):
        """Children and static part: a fixed number of drafts is static."""
        if self.is_fixed:
            static = (int(self.num_drafts), None, self.vocab_size)
            return (self.tokens, self.token_probs), static
        static = (None, self._max_drafts, self.vocab_size)
        return (self.tokens, self.token_probs, self.num_drafts), static

    @classmethod
    def tree_unflatten(cls, static, children):
        """Inverse of `tree_flatten`; checks nothing, as JAX requires."""
        law = object.__new__(cls)
        num_drafts, law._max_drafts, law.vocab_size = static
        law.tokens, law.token_probs = children[:2]
        law.num_drafts = children[2] if num_drafts is None else num_drafts
        return law
