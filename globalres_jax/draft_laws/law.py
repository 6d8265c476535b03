"""What every draft law can do.

A law can be sampled, and answers the two questions that the optimum depends on: the
probability that all drafts lie in a set, and the Laplace functional of their multiset,
L(u) = E exp(-sum_j u[X_j]), with its first two derivatives.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array
from globalres_jax.validation import is_concrete
from globalres_jax.draft_laws.closed_form import ClosedForm
from globalres_jax.numerics.top_tokens import heaviest
from globalres_jax.numerics.sums import blockwise_sum


class Moments(NamedTuple):
    """The Laplace functional at S points and moments of the counts N_i it weights.

    With Z = exp(-sum_j u[X_j]) and N_i the number of drafts that are token i, the
    second moments are `E[N_i N_j Z] = diag(diagonal) + plus^T plus - minus^T minus`.

    Attributes:
      value: [S] L = E Z.
      mean: [S, V] E[N_i Z] = -dL/du_i.
      diagonal: [S, V].
      plus: [a, S, V].
      minus: [b, S, V].
    """

    value: Array
    mean: Array
    diagonal: Array
    plus: Array
    minus: Array


class DraftLaw:
    """Base of the laws; a law is a pytree of the fields it names.

    Attributes:
      num_drafts: n.
      prefix_is_optimal: whether a prefix of the tokens in `subset_order` minimises
        p(H) + 1 - Q(H). Elsewhere such a prefix only bounds it.
    """

    arrays: ClassVar[tuple[str, ...]] = ("probs",)
    static: ClassVar[tuple[str, ...]] = ("num_drafts", "max_support")
    prefix_is_optimal: ClassVar[bool] = True

    @property
    def exact_moments(self) -> bool:
        """Whether `moments` gives second moments exactly (first ones always are)."""
        return True

    num_drafts: int | Array
    max_support: int | None = None

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_node_class(cls)

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.probs.shape[-1]

    @property
    def dtype(self) -> jnp.dtype:
        """Floating type that the law computes in."""
        return self.probs.dtype

    def sample(self, key: Array) -> Array:
        """Draws the drafts: [n] int32."""
        raise NotImplementedError

    def draft_probability(self, draft_tokens: Array) -> Array:
        """Probability of drawing exactly `draft_tokens [n]`, in this order: []."""
        raise NotImplementedError

    def containment(self, members: Array) -> Array:
        """Q(H), the probability that every draft lies in H (`members [V]` bool)."""
        raise NotImplementedError

    def moments(self, survive: Array) -> Moments:
        """`Moments` at the points u = -log(survive [S, V])."""
        raise NotImplementedError

    def subset_order(self, p: Array) -> Array:
        """[V] tokens, those that a subset H* holds first."""
        raise NotImplementedError

    def escape(self, order: Array) -> Array:
        """[V + 1] 1 - Q(H) for the prefixes H of the tokens in `order [V]`."""
        raise NotImplementedError

    def closed_form(self, p: Array) -> ClosedForm | None:
        """The optimal race for `p [V]` where it needs no solver, else None."""
        del p
        return None

    def laplace(self, u: Array) -> Array:
        """L(u) = E exp(-sum_j u[X_j]) for `u [V] >= 0`: []."""
        return self.moments(jnp.exp(-u)[None]).value[0]

    def support(self) -> Array | None:
        """[m] tokens that hold all drafts, or None for the whole vocabulary."""
        if self.max_support is None or self.max_support >= self.vocab_size:
            return None
        return heaviest(self.probs, self.max_support)

    def restrict(self, tokens: Array) -> Self:
        """The same law over `tokens [m]` alone, which hold all drafts."""
        return self._replace(probs=self.probs[..., tokens], max_support=None)

    def _replace(self, **changes) -> Self:
        law = object.__new__(type(self))
        for name in (*self.arrays, *self.static):
            setattr(law, name, changes.pop(name, getattr(self, name)))
        if changes:
            raise TypeError(f"{type(self).__name__} has no {', '.join(changes)}")
        return law

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
        fields = (f"{name}={getattr(self, name)!r}" for name in self.arrays)
        options = (f"{name}={getattr(self, name)!r}" for name in self.static)
        return f"{type(self).__name__}({', '.join((*fields, *options))})"


def check_num_drafts(num_drafts) -> int:
    """`num_drafts` as an int; ValueError if it is none, or less than 1."""
    if not is_concrete(num_drafts) or np.ndim(num_drafts) != 0:
        raise ValueError(f"num_drafts: expected a Python int, got {num_drafts!r}")
    if int(num_drafts) != num_drafts or num_drafts < 1:
        raise ValueError(f"num_drafts: must be at least 1, got {num_drafts}")
    return int(num_drafts)


def check_support(probs: Array, num_drafts: int, max_support: int | None) -> None:
    """ValueError if `probs` has more tokens than promised, or fewer than drafted."""
    if max_support is not None and not max_support >= 1:
        raise ValueError(f"max_support: must be at least 1, got {max_support}")
    if not is_concrete(probs):
        return
    support = int(jnp.min(jnp.sum(probs > 0, axis=-1)))
    if support < num_drafts:
        raise ValueError(
            f"num_drafts: {num_drafts} different drafts, but only {support} tokens of "
            "probs are above zero"
        )
    if max_support is not None and support > max_support:
        raise ValueError(
            f"max_support: {support} tokens of probs are above zero, more than "
            f"{max_support}"
        )


def keep_heaviest(probs: Array, max_support: int | None) -> Array:
    """`probs [V]` normalised, on its `max_support` heaviest tokens alone.

    A promise that traced values break would otherwise make solver and sampler
    disagree about the law.
    """
    if max_support is not None and max_support < probs.shape[-1]:
        kept = heaviest(probs, max_support)
        probs = jnp.zeros_like(probs).at[kept].set(probs[kept])
    return probs / blockwise_sum(probs)


def ratio_order(p: Array, q: Array) -> Array:
    """[V] tokens ordered by q/p descending; those never drafted come last."""
    ratio = jnp.where(p > 0, q / jnp.where(p > 0, p, 1), jnp.where(q > 0, jnp.inf, 0))
    return jnp.argsort(-ratio)


def mass_beyond(mass: Array) -> Array:
    """[V + 1] what each prefix of `mass [V]` leaves out, from small sums."""
    suffix = jnp.cumsum(mass[::-1])[::-1]
    return jnp.concatenate([suffix, jnp.zeros(1, mass.dtype)])


def transform(probs: Array, survive: Array) -> Array:
    """Phi [..., S] = 1 - sum_i q_i (1 - e_i): what lacks in `probs` survives.

    Args:
      probs: [..., 1, V].
      survive: [..., S, V] e.
    """
    # Near 1 the first form is the exact one, near 0 the second.
    fallen = blockwise_sum((1 - survive) * probs)
    return jnp.maximum(1 - fallen, blockwise_sum(survive * probs))


def no_factors(survive: Array) -> Array:
    """[0, S, V]."""
    return jnp.zeros((0, *survive.shape), survive.dtype)


def root_scale(value: Array) -> Array:
    """1 / sqrt(value), and 0 where that overflows."""
    tiny = jnp.finfo(value.dtype).tiny
    return jnp.where(value > tiny, jax.lax.rsqrt(jnp.maximum(value, tiny)), 0)
