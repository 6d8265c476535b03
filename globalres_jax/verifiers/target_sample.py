"""Target sampling (naive speculative sampling, NSS): look whether it was drafted."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw, Independent
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
        """P on the drafted tokens is accepted, the rest is left."""
        return Decision(*take_drafted(p, draft_tokens))

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i p_i Pr[i is drafted]: []."""
        if isinstance(law, IID):
            absent = jnp.exp(law.num_drafts * jnp.log1p(-jnp.minimum(law.probs, 1)))
        elif isinstance(law, Independent):
            absent = jnp.prod(1 - law.probs, axis=0)
        else:
            every = jnp.ones((1, law.vocab_size), p.dtype)
            absent = 1 - law.moments(every).mean[0]  # a token is drafted once at most
        return jnp.sum(p * (1 - absent))
