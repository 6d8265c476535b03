"""What all single-step rules share: `decide`, and the check of the draft law."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.validation import as_distribution, same_vocabulary
from globalres_jax.draft_laws import DraftLaw, Independent


def accept_probability(p: Array, q: Array) -> Array:
    """min(1, p / q), and 0 where a token cannot have been drafted."""
    return jnp.where(q > 0, jnp.minimum(1, p / jnp.where(q > 0, q, 1)), 0)


def accept_in_turn(chance: Array) -> Array:
    """[n] probability that a slot is the first accepted, from `chance [n]` of each."""
    before = jnp.cumprod(1 - chance)
    return chance * jnp.concatenate([jnp.ones(1, chance.dtype), before[:-1]])


def take_drafted(emitted: Array, draft_tokens: Array) -> tuple[Array, Array]:
    """Splits `emitted [V]` into what was drafted [n] and the rest [V].

    A token drafted twice is counted at its first slot.
    """
    slots = jnp.arange(draft_tokens.shape[0])
    same = draft_tokens[:, None] == draft_tokens[None]
    repeated = jnp.any(same & (slots[None] < slots[:, None]), axis=1)
    counts = (draft_tokens >= 0) & ~repeated
    # A negative index would count from the end.
    place = jnp.where(draft_tokens >= 0, draft_tokens, emitted.shape[0])
    rest = emitted.at[place].set(0, mode="drop")
    return jnp.where(counts, emitted[draft_tokens], 0), rest


def first_law(law: DraftLaw) -> Array:
    """[V] law of the first draft."""
    return law.probs[0] if isinstance(law, Independent) else law.probs


class Rule:
    """Base of the rules; a rule defines `resolve`, and `prepare` if it plans ahead.

    Attributes:
      serves: draft laws that the rule is lossless for.
      serves_trees: whether the number of drafts may be data, as in a token tree.
    """

    serves: tuple[type, ...] = ()
    serves_trees: bool = True

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
        return ()

    def resolve(self, plan: Any, p: Array, law: Any, draft_tokens: Array) -> Decision:
        """Decision for the drafted tokens, from what `prepare` returned."""
        raise TypeError(f"{type(self).__name__} does not define resolve")

    def acceptance_rate(self, p: Array, law: Any) -> Array:
        """Probability that a draft is accepted, without enumerating drafts: []."""
        raise TypeError(f"{type(self).__name__} does not define acceptance_rate")

    def decide(self, p: Array, law: Any, draft_tokens: Array) -> Decision:
        """The law of the emitted token, given the drafts.

        Args:
          p: [V] target distribution.
          law: the law that the drafts were drawn from.
          draft_tokens: [n] integers; slots that hold `NO_TOKEN` are not in use, and
            the others must be as many as `law.num_drafts`.

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
        if isinstance(law.num_drafts, int) and draft_tokens.shape[0] < law.num_drafts:
            raise ValueError(
                f"draft_tokens: {draft_tokens.shape[0]} slots for a law that draws "
                f"{law.num_drafts}"
            )
        return self.resolve(self.prepare(p, law), p, law, draft_tokens)
