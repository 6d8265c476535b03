"""How to speculate: one frozen, hashable description, checked when it is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from globalres_jax.base import Array, Verifier
from globalres_jax.draft_laws import IID
from globalres_jax.transforms import check_filters, probabilities
from globalres_jax.tree import TokenTree, paths
from globalres_jax.verifiers import GlobalResolution


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Options of `generate`. Static under `jit`: another config is another program.

    Attributes:
      num_drafts: number of drafted paths.
      draft_length: tokens on each path; 0 is plain decoding.
      tree: shape of the token tree; `paths(num_drafts, draft_length)` if None. Where
        it is given, it alone counts.
      law: draft law of the children of a node, `law(probs, num_drafts,
        max_support=...)`: `IID`, since paths that spell the same text are merged.
      verifier: single-step rule.
      temperature, top_k, top_p, min_p: sampling options, for target and draft alike,
        applied in this order; temperature 0 is greedy.
      cache_length: slots of the key/value caches; what is needed if None.
      pad_id: fills `Generation.tokens` after the end of a row.
      measure_optimum: whether to count what the optimal rule would accept.
    """

    num_drafts: int = 4
    draft_length: int = 4
    tree: TokenTree | None = None
    law: Callable[..., Any] = IID
    verifier: Verifier = GlobalResolution()
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    cache_length: int | None = None
    pad_id: int = -1
    measure_optimum: bool = True

    def __post_init__(self):
        check_filters(self.temperature, self.top_k, self.top_p, self.min_p)
        if self.tree is None:
            tree = paths(self.num_drafts, self.draft_length)
            object.__setattr__(self, "tree", tree)
        if self.tree.depth:
            if not self.verifier.serves_trees:
                raise ValueError(
                    f"verifier: {type(self.verifier).__name__} needs a fixed number of "
                    "drafts, and in a token tree it depends on the tokens"
                )
            if isinstance(self.law, type) and not issubclass(self.law, IID):
                raise ValueError(
                    "law: the nodes of a token tree draw their children independently, "
                    f"so IID is allowed, got {self.law.__name__}"
                )
            most = max(len(level) for level in self.tree.levels[1:])
            self.verifier.check(self.law(np.array([0.5, 0.5]), most))

    def to_probabilities(self, logits: Array) -> Array:
        """The distribution that a row of logits stands for under these options."""
        return probabilities(
            logits, self.temperature, self.top_k, self.top_p, self.min_p
        )

    @property
    def draft_law(self) -> Callable[[Array, int | Array], Any]:
        """`law(probs, num_drafts)` with the support that the options leave."""
        support = 1 if self.temperature == 0 else self.top_k
        return functools.partial(self.law, max_support=support)

    def plain(self) -> SpeculativeConfig:
        """The same sampling options, one token a step, no drafts."""
        return dataclasses.replace(self, tree=TokenTree(()))
