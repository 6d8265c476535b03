"""What every draft law can do.

A law holds the k tokens that it can draw and speaks of those alone: of all V where it
was made from a whole row, of the `max_support` likeliest where that was asked for. It
can be sampled, and answers the two questions that the optimum depends on: the
probability that all drafts lie in a set, and the Laplace functional of their multiset,
L(u) = E exp(-sum_j u[X_j]), with its derivative.
"""

from __future__ import annotations

import copy
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.draft_laws.closed_form import ClosedForm
from globalres_jax.numerics.categorical import uniforms
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.numerics.top_tokens import top_tokens
from globalres_jax.validation import as_distribution, is_concrete


class Moments(NamedTuple):
    """The Laplace functional at S points, and the mean counts that it weights.

    With Z = exp(-sum_j u[X_j]) and N_i the number of drafts that are token i.

    Attributes:
      value: [S] L = E Z.
      mean: [S, k] E[N_i Z] = -dL/du_i.
      by_draft: [n, S, k] the same for each draft alone, where drafts are independent of
        one another; None where they are not, or are all alike.
    """

    value: Array
    mean: Array
    by_draft: Array | None = None


class DraftLaw:
    """Base of the laws; a law is a pytree of the fields it names.

    Attributes:
      num_drafts: n.
      vocab_size: V.
      tokens: [k] the tokens that it can draw; None where k = V and they are all, in
        their order.
      token_probs: [k] (or [n, k]) the draft model's probabilities of these tokens.
      may_lack: whether drafts can be lacking: `NO_TOKEN`, the last of them, where fewer
        than n tokens have mass.
      joins: whether drafts from equal rows are together a larger sample of the law.
      prefix_is_optimal: whether a prefix of the tokens in `subset_order` minimises
        p(H) + 1 - Q(H). Elsewhere such a prefix only bounds it.
    """

    arrays: ClassVar[tuple[str, ...]] = ("tokens", "token_probs")
    static: ClassVar[tuple[str, ...]] = ("num_drafts", "vocab_size")
    may_lack: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    prefix_is_optimal: ClassVar[bool] = True

    num_drafts: int | Array
    vocab_size: int
    tokens: Array | None
    token_probs: Array

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_node_class(cls)

    @property
    def max_drafts(self) -> int:
        """Most drafts that `num_drafts` can be: a Python int."""
        return self.num_drafts

    @property
    def probs(self) -> Array:
        """The draft model's distribution q, dense: [V] (or [n, V])."""
        return self.spread(self.token_probs)

    @property
    def first(self) -> Array:
        """[k] law of the first draft."""
        return self.token_probs

    @property
    def dtype(self) -> jnp.dtype:
        """Floating type that the law computes in."""
        return self.token_probs.dtype

    def take(self, row: Array) -> Array:
        """[..., V] to [..., k]: the entries of the law's tokens."""
        if self.tokens is None:
            return row
        return row.at[..., self.tokens].get(mode="promise_in_bounds")

    def spread(self, values: Array) -> Array:
        """[..., k] to [..., V]: zero for tokens that the law cannot draw."""
        if self.tokens is None:
            return values
        empty = jnp.zeros((*values.shape[:-1], self.vocab_size), values.dtype)
        at = empty.at[..., self.tokens]
        return at.set(values, mode="promise_in_bounds", unique_indices=True)

    def lookup(self, values: Array, draft_tokens: Array) -> Array:
        """[n] the entries of `values [k]` at drafted tokens, 0 for all others."""
        if self.tokens is None:
            return jnp.where(draft_tokens >= 0, values[draft_tokens], 0)
        same = draft_tokens[:, None] == self.tokens[None]
        return jnp.sum(jnp.where(same, values[None], 0), axis=1)

    def name_places(self, places: Array) -> Array:
        """Tokens of the vocabulary for `places` among the law's own; -1 stays."""
        if self.tokens is None:
            return places
        return jnp.where(places >= 0, self.tokens[places], places)

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [n] int32 tokens of the vocabulary."""
        return self.draw(uniforms(key, (self.num_drafts,), self.dtype))

    def draw(self, numbers: Array) -> Array:
        """`sample` from uniform `numbers [n, UNIFORMS]`, a row for each draft."""
        raise NotImplementedError

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        raise NotImplementedError

    def containment(self, members: Array) -> Array:
        """Q(H), the probability that every draft lies in H (`members [k]` bool)."""
        raise NotImplementedError

    def moments(self, survive: Array) -> Moments:
        """`Moments` at the points u = -log(survive [S, k])."""
        raise NotImplementedError

    def rough_counts(self) -> Array:
        """[k] E N_i, or near it where exactness is dear; zero if never drafted."""
        everything = jnp.ones((1, self.token_probs.shape[-1]), self.dtype)
        return self.moments(everything).mean[0]

    def subset_order(self, p: Array) -> Array:
        """[k] places of the tokens, those that a subset H* holds first; `p [k]`."""
        raise NotImplementedError

    def escape(self, order: Array) -> Array:
        """[k + 1] 1 - Q(H) for the prefixes H of the places in `order [k]`."""
        raise NotImplementedError

    def closed_form(self, p: Array) -> ClosedForm | None:
        """The optimal race for `p [k]` where it needs no solver, else None."""
        del p
        return None

    def laplace(self, u: Array) -> Array:
        """L(u) = E exp(-sum_j u[X_j]) for `u [k] >= 0`: []."""
        return self.moments(jnp.exp(-u)[None]).value[0]

    def joined(self, num_drafts: Array, most: int) -> Self:
        """The law of another number of drafts, of which there are at most `most`."""
        raise TypeError(f"{type(self).__name__}: drafts of several nodes do not join")

    def renamed(self, tokens: Array, vocab_size: int) -> Self:
        """The same over another vocabulary, where token i is called `tokens[i]`.

        Args:
          tokens: [self.vocab_size] different tokens.
          vocab_size: size of the other vocabulary.
        """
        law = copy.copy(self)
        law.tokens = tokens if self.tokens is None else tokens[self.tokens]
        law.vocab_size = vocab_size
        return law

    def _hold(self, probs: Array, max_support: int | None, least: int) -> None:
        """Sets `tokens` and `token_probs` from a row `probs [..., V]`."""
        self.vocab_size = probs.shape[-1]
        self.tokens, self.token_probs = held_tokens(probs, max_support, least)

    def tree_flatten(self):
        """Children and static part, as `jax.tree_util` wants them."""
        children = tuple(getattr(self, name) for name in self.arrays)
        return children, tuple(getattr(self, name) for name in self.static)

    @classmethod
    def tree_unflatten(cls, static, children):
        """Inverse of `tree_flatten`; checks nothing, as JAX requires."""
        law = object.__new__(cls)
        for name, value in zip(cls.arrays, children, strict=True):
            setattr(law, name, value)
        for name, value in zip(cls.static, static, strict=True):
            setattr(law, name, value)
        return law

    def __repr__(self) -> str:
        names = (*self.arrays, *self.static)
        fields = (f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({', '.join(fields)})"


def held_tokens(
    probs: Array, max_support: int | None, least: int = 1
) -> tuple[Array | None, Array]:
    """The tokens that a law on a row holds [k], and their probabilities, normalised.

    What is beyond the `max_support` likeliest is no part of the law, which neither
    draws it nor counts it: sampler, solver and certificate see the same k tokens.

    Args:
      probs: [..., V], zeros for what is never drawn.
      max_support: k at most; None for all V (the tokens are then None).
      least: k at least, for laws that draw so many different tokens.
    """
    if max_support is None or max(max_support, least) >= probs.shape[-1]:
        return None, normalized(probs)
    tokens = top_tokens(probs, max(max_support, least))
    chosen = probs.at[..., tokens].get(mode="promise_in_bounds")
    return tokens, normalized(chosen)


def normalized(probs: Array) -> Array:
    """`probs [..., k]` divided by their sum; 0 for what processors take for 0."""
    probs = probs / blockwise_sum(probs)[..., None]
    return jnp.where(probs < jnp.finfo(probs.dtype).tiny, 0, probs)


def checked_row(
    probs: Array, max_support: int | None, num_drafts: int = 1, ndim: int = 1
) -> Array:
    """`probs [V]` (or [n, V]) as distributions, wherever values can be seen.

    Raises:
      ValueError: a row is no distribution, has more tokens above zero than
        `max_support`, or fewer than `num_drafts`.
    """
    probs = as_distribution("probs", probs, ndim)
    if max_support is not None and not max_support >= 1:
        raise ValueError(f"max_support: must be at least 1, got {max_support}")
    if num_drafts > probs.shape[-1]:
        raise ValueError(
            f"num_drafts: {num_drafts} different drafts of {probs.shape[-1]} tokens"
        )
    if not is_concrete(probs):
        return probs
    least = jnp.finfo(probs.dtype).tiny
    support = np.sum(np.asarray(probs) >= least, axis=-1)
    if support.min() < num_drafts:
        raise ValueError(
            f"num_drafts: {num_drafts} different drafts, but only {support.min()} "
            "tokens of probs are above zero"
        )
    if max_support is not None and support.max() > max_support:
        row = "probs" if ndim == 1 else "a row of probs"
        raise ValueError(
            f"max_support: {support.max()} tokens of {row} are above zero, more than "
            f"{max_support}"
        )
    return probs


def check_num_drafts(num_drafts) -> int:
    """`num_drafts` as an int; ValueError if it is none, or less than 1."""
    if not is_concrete(num_drafts) or np.ndim(num_drafts) != 0:
        raise ValueError(f"num_drafts: expected a Python int, got {num_drafts!r}")
    if int(num_drafts) != num_drafts:
        raise ValueError(f"num_drafts: expected an integer, got {num_drafts!r}")
    if num_drafts < 1:
        raise ValueError(f"num_drafts: must be at least 1, got {num_drafts}")
    return int(num_drafts)


def ratio_order(p: Array, q: Array) -> Array:
    """[k] tokens ordered by q/p descending; those never drafted come last."""
    ratio = jnp.where(p > 0, q / jnp.where(p > 0, p, 1), jnp.where(q > 0, jnp.inf, 0))
    return jnp.argsort(-ratio)


def transform(probs: Array, survive: Array) -> Array:
    """phi [..., S] = 1 - sum_i q_i (1 - e_i): what lacks in `probs` survives.

    Args:
      probs: [..., 1, k].
      survive: [..., S, k] e.
    """
    # Near 1 the first form is the exact one, near 0 the second.
    fallen = blockwise_sum((1 - survive) * probs)
    return jnp.maximum(1 - fallen, blockwise_sum(survive * probs))
