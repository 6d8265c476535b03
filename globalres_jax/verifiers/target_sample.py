"""Target sampling (naive speculative sampling, NSS): look whether it was drafted."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import DraftLaw, Independent
from globalres_jax.numerics.powers import one_minus_power
from globalres_jax.verifiers.rule import Rule, take_drafted


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetSample(Rule):
    """Draw y from p; it is accepted if it is among the drafts.

    Lossless whatever the drafts are, and optimal where they are a fixed set.
    """

    serves = (DraftLaw,)

    def resolve(
        self, plan: tuple, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """p on the drafted tokens is accepted, the rest is left."""
        return Decision(*take_drafted(p, draft_tokens))

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i p_i Pr[i is drafted]: []."""
        if law.joins:
            drafted = one_minus_power(law.first, law.num_drafts)
        elif isinstance(law, Independent):
            drafted = 1 - jnp.prod(1 - law.token_probs, axis=0)
        else:  # no token is drafted twice
            drafted = law.moments(jnp.ones((1, *law.first.shape), law.dtype)).mean[0]
        return jnp.sum(law.take(p) * drafted)
