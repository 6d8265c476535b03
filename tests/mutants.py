"""Deliberately broken rules that more than one test file must catch."""

import dataclasses

import jax

from globalres_jax.base import Decision
from globalres_jax.verifiers import GlobalResolution


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ResidualFromTarget(GlobalResolution):
    """Mutant: rejected mass is drawn from p, not from what is left of it."""

    def resolve(self, plan, p, law, draft_tokens):
        decision = super().resolve(plan, p, law, draft_tokens)
        return Decision(decision.accept, (1 - decision.accept.sum()) * p)
