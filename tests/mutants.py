"""Deliberately broken rules that more than one test file must catch."""

import dataclasses

import jax
import numpy as np

from globalres_jax.base import Decision, TreeVerifier
from globalres_jax.verifiers import GlobalResolution


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ResidualFromTarget(GlobalResolution):
    """Mutant: rejected mass is drawn from p, not from what is left of it."""

    def resolve(self, plan, p, law, draft_tokens):
        decision = super().resolve(plan, p, law, draft_tokens)
        return Decision(decision.accept, (1 - decision.accept.sum()) * p)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RowOfTheParent:
    """Mutant of a rule for trees: a token is verified against the row before it."""

    rule: TreeVerifier

    def law(self, tree, tokens, p, laws):
        return self.rule.law(tree, tokens, p[np.maximum(tree.parents, 0)], laws)
