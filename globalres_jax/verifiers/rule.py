"""What our single-position rules share: `decide`, and the check of the draft law.

`base.Verifier` is all that a rule has to be; this base class is a convenience.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import DraftLaw
from globalres_jax.numerics.quotient import quotient
from globalres_jax.validation import as_distribution, same_vocabulary


def accept_probability(p: Array, q: Array) -> Array:
    """min(1, p / q), and 0 where a token cannot have been drafted."""
    return jnp.minimum(1, quotient(p, q))


def rejected(accept: Array) -> Array:
    """1 - sum(accept): [] probability that none of `accept [n]` is; never below 0."""
    left = 1 - jnp.sum(accept)
    # A bound for rounding, which the derivative does not know.
    return left + jax.lax.stop_gradient(jnp.maximum(left, 0) - left)


def accept_in_turn(chance: Array) -> Array:
    """[n] probability that a slot is the first accepted, from `chance [n]` of each."""
    before = jnp.cumprod(1 - chance)
    return chance * jnp.concatenate([jnp.ones(1, chance.dtype), before[:-1]])


def take_drafted(emitted: Array, draft_tokens: Array) -> tuple[Array, Array]:
    """Splits `emitted [V]` into what was drafted [n] and the rest [V].

    A token drafted twice is counted at its first slot.
    """
    used = draft_tokens >= 0
    # A negative index would count from the end.
    place = jnp.where(used, draft_tokens, emitted.shape[0])
    rest = emitted.at[place].set(0, mode="drop")
    counts = used & first_of_each(draft_tokens)
    return jnp.where(counts, emitted[draft_tokens], 0), rest


def first_of_each(tokens: Array) -> Array:
    """[..., n] bool: True where a token stands for the first time."""
    n = tokens.shape[-1]
    equal = tokens[..., :, None] == tokens[..., None, :]
    earlier = jnp.tril(jnp.ones((n, n), bool), k=-1)
    return ~jnp.any(equal & earlier.reshape((1,) * (equal.ndim - 2) + (n, n)), axis=-1)


def outside_law(p: Array, law: DraftLaw) -> Array:
    """`p [V]` without the tokens that the law can draw."""
    if law.tokens is None:
        return jnp.zeros_like(p)
    return p.at[law.tokens].set(0, mode="promise_in_bounds", unique_indices=True)


class Rule:
    """Base of the rules; a rule defines `resolve`, and `prepare` if it plans ahead.

    Attributes:
      serves: draft laws that the rule is lossless for.
    """

    serves: ClassVar[tuple[type, ...]] = ()

    def check(self, law: Any) -> None:
        """Raises TypeError if the rule does not serve this draft law."""
        if not isinstance(law, self.serves):
            names = ", ".join(served.__name__ for served in self.serves)
            names = "any draft law" if DraftLaw in self.serves else names
            raise TypeError(
                f"law: {type(self).__name__} serves {names}, got {type(law).__name__}"
            )

    def prepare(self, p: Array, law: Any) -> Any:
        """What does not depend on the drafted tokens; nothing by default."""
        del p, law
        return ()

    def resolve(self, plan: Any, p: Array, law: Any, draft_tokens: Array) -> Decision:
        """Decision for the drafted tokens, from what `prepare` returned."""
        raise TypeError(f"{type(self).__name__} does not define resolve")

    def has_acceptance_rate(self, law: Any) -> bool:
        """Whether `acceptance_rate` is known for this law without enumeration."""
        del law
        return type(self).acceptance_rate is not Rule.acceptance_rate

    def acceptance_rate(self, p: Array, law: Any) -> Array:
        """Probability that a draft is accepted, without enumerating drafts: []."""
        raise TypeError(
            f"{type(self).__name__} does not define acceptance_rate for "
            f"{type(law).__name__}"
        )

    def decide(self, p: Array, law: Any, draft_tokens: Array) -> Decision:
        """The law of the emitted token, given the drafts.

        Args:
          p: [V] target distribution.
          law: the law that the drafts were drawn from.
          draft_tokens: [m] integers; slots that hold `NO_TOKEN` are not in use, and
            the others must be as many as `law.num_drafts`, in the law's order.

        Returns:
          A `Decision`.

        Raises:
          TypeError: the rule does not serve the law.
          ValueError: `p` is no distribution, or shapes do not fit.
        """
        self.check(law)
        p = as_distribution("p", p)
        same_vocabulary(p, law)
        draft_tokens = jnp.asarray(draft_tokens)
        if draft_tokens.ndim != 1:
            raise ValueError(
                f"draft_tokens: expected shape [n], got {draft_tokens.shape}"
            )
        fixed = isinstance(law.num_drafts, int | np.integer)
        if fixed and draft_tokens.shape[0] < law.num_drafts:
            raise ValueError(
                f"draft_tokens: {draft_tokens.shape[0]} slots for a law that draws "
                f"{law.num_drafts}"
            )
        return self.resolve(self.prepare(p, law), p, law, draft_tokens)


def check_most_drafts(rule: Rule, law: DraftLaw, why: str) -> None:
    """Raises ValueError where nobody said how many drafts there are at most."""
    if law.max_drafts is None:
        raise ValueError(
            f"num_drafts: {type(rule).__name__} {why} and needs a Python int, or "
            f"max_drafts beside a number that is data; got {law.num_drafts!r}"
        )
