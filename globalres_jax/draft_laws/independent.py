"""Independent drafts from different draft models."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.draft_laws.closed_form import ClosedForm, single_draft
from globalres_jax.draft_laws.law import (
    DraftLaw,
    Moments,
    checked_row,
    normalized,
    ratio_order,
    transform,
)
from globalres_jax.numerics.categorical import draw
from globalres_jax.numerics.sums import mass_beyond
from globalres_jax.numerics.top_tokens import top_tokens


class Independent(DraftLaw):
    """Draft j is drawn from `probs[j]`, independently of the others.

    L(u) = prod_j phi_j(u); Q(H) = prod_j q_j(H). For n >= 2 the optimal subset is no
    prefix of a known order; the weights of the solved race give it.

    Args:
      probs: [n, V] distributions q_1 .. q_n; rounding in their sums is removed.
      max_support: k; the law is on the k likeliest tokens of every row, and on as many
        more as make `n k` different ones, which are all where no row has more than k
        tokens above zero.

    Raises:
      ValueError: a row is no distribution, or more than `max_support` of its tokens
        have probability above zero. (Traced rows lose what is beyond.)
    """

    static = ("vocab_size",)

    def __init__(self, probs: Array, max_support: int | None = None):
        probs = checked_row(probs, max_support, ndim=2)
        self.vocab_size = probs.shape[-1]
        self.tokens = None
        most = len(probs) * (max_support or self.vocab_size)
        if most < self.vocab_size:
            self.tokens = _union(probs, max_support, most)
            probs = probs.at[:, self.tokens].get(mode="promise_in_bounds")
        self.token_probs = normalized(probs)

    @property
    def num_drafts(self) -> int:
        """Number of drafts n, one of each row."""
        return self.token_probs.shape[-2]

    @property
    def prefix_is_optimal(self) -> bool:
        """For one draft alone."""
        return self.num_drafts == 1

    @property
    def first(self) -> Array:
        """[k] law of the first draft."""
        return self.token_probs[0]

    def draw(self, numbers: Array) -> Array:
        """Draws the drafts from uniform `numbers [n, UNIFORMS]`: [n] int32."""
        return self.name_places(jax.vmap(draw)(numbers, self.token_probs))

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        each = jax.vmap(self.lookup)(self.token_probs, draft_tokens[:, None])
        return jnp.prod(each)

    def containment(self, members: Array) -> Array:
        """Q(H) = prod_j q_j(H) for `members [k]` bool."""
        return jnp.prod(jnp.sum(jnp.where(members, self.token_probs, 0), axis=1))

    def moments(self, survive: Array) -> Moments:
        """The product of all phi_j, and that of all but one times q_j e, summed."""
        q = self.token_probs[:, None]
        phi = transform(q, survive[None])
        one = jnp.ones((1, phi.shape[1]), phi.dtype)
        before = jnp.cumprod(jnp.concatenate([one, phi[:-1]]), axis=0)
        after = jnp.cumprod(jnp.concatenate([one, phi[:0:-1]]), axis=0)[::-1]
        each = (before * after)[..., None] * q * survive[None]
        return Moments(jnp.prod(phi, axis=0), jnp.sum(each, axis=0), each)

    def closed_form(self, p: Array) -> ClosedForm | None:
        """The optimal race for one draft, None for more."""
        return single_draft(p, self.token_probs[0]) if self.num_drafts == 1 else None

    def subset_order(self, p: Array) -> Array:
        """By mean draft probability over p: a bound, in general no optimum."""
        return ratio_order(p, jnp.mean(self.token_probs, axis=0))

    def escape(self, order: Array) -> Array:
        """[k + 1] 1 - prod_j q_j(H) for the prefixes H."""
        eps = jnp.finfo(self.dtype).eps
        beyond = jax.vmap(mass_beyond)(self.token_probs[:, order])
        inside = jnp.log1p(-jnp.minimum(beyond, 1 - eps))
        return jnp.where(beyond.max(0) >= 1 - eps, 1, -jnp.expm1(inside.sum(0)))


def _union(probs: Array, each: int, size: int) -> Array:
    """[size] tokens: the `each` likeliest of every row of `probs [n, V]`, and more."""
    likeliest = jax.lax.stop_gradient(jnp.max(probs, axis=0))

    def by_rows() -> Array:
        # Each row's own come first, however small they are in it: a row must not
        # lose all of its tokens to the others.
        own = jax.vmap(lambda row: top_tokens(row, each))(probs)
        return top_tokens(likeliest.at[own.reshape(-1)].add(1), size)

    # Most often all that have mass fit, and then each row's own are among them.
    all_fit = jnp.sum(likeliest > 0, dtype=jnp.int32) <= size
    return jax.lax.cond(all_fit, lambda: top_tokens(likeliest, size), by_rows)
