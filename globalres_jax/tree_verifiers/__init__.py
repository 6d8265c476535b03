"""Rules for whole token trees, one a file, behind `base.TreeVerifier`."""

from globalres_jax import verifiers
from globalres_jax.base import TreeVerifier, Verifier
from globalres_jax.tree_verifiers.block import Block
from globalres_jax.tree_verifiers.expected import expected_accepted, expected_by_level
from globalres_jax.tree_verifiers.layer import LayerResolution
from globalres_jax.tree_verifiers.multi_path import GreedyMultiPathBlock
from globalres_jax.tree_verifiers.optimum import optimum_along
from globalres_jax.tree_verifiers.top_down import TopDown
from globalres_jax.tree_verifiers.traversal import Traversal


def as_tree_verifier(rule: Verifier | TreeVerifier) -> TreeVerifier:
    """A rule for trees as it is; a rule for one position from the root down."""
    return rule if hasattr(rule, "walk") else TopDown(rule)


#: Hierarchical speculative decoding (arXiv 2601.05724) is block verification.
HierarchicalSpeculative = Block

#: Command-line names of the rules for trees that are no single-position rules.
BY_NAME = {
    "block": Block,
    "greedy-multi-path-block": GreedyMultiPathBlock,
    "layer-resolution": LayerResolution,
    "traversal": Traversal,
}


def by_name(name: str) -> Verifier | TreeVerifier:
    """The rule with this command-line name; ValueError lists the names."""
    rules = verifiers.BY_NAME | BY_NAME
    if name not in rules:
        raise ValueError(f"verifier: unknown rule {name!r}; one of {', '.join(rules)}")
    return rules[name]()


__all__ = [
    "BY_NAME",
    "Block",
    "GreedyMultiPathBlock",
    "HierarchicalSpeculative",
    "LayerResolution",
    "TopDown",
    "Traversal",
    "as_tree_verifier",
    "by_name",
    "expected_accepted",
    "expected_by_level",
    "optimum_along",
]
