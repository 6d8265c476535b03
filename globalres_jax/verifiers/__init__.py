"""Single-step verification rules, one a file, behind one protocol."""

from globalres_jax.verifiers.global_resolution import GlobalResolution
from globalres_jax.verifiers.greedy_draft import GreedyDraft
from globalres_jax.verifiers.k_seq import KSeq
from globalres_jax.verifiers.khisti import Khisti
from globalres_jax.verifiers.naive import Naive
from globalres_jax.verifiers.recursive_rejection import RecursiveRejection
from globalres_jax.verifiers.single_draft import SingleDraft
from globalres_jax.verifiers.spec_hub import SpecHub
from globalres_jax.verifiers.target_sample import TargetSample
from globalres_jax.verifiers.truncated_global_resolution import (
    TruncatedGlobalResolution,
)

#: Command-line names of the rules.
BY_NAME = {
    "global-resolution": GlobalResolution,
    "greedy-draft": GreedyDraft,
    "k-seq": KSeq,
    "khisti": Khisti,
    "naive": Naive,
    "recursive-rejection": RecursiveRejection,
    "single-draft": SingleDraft,
    "spec-hub": SpecHub,
    "target-sample": TargetSample,
    "truncated-global-resolution": TruncatedGlobalResolution,
}


def by_name(name: str):
    """The rule with this command-line name; ValueError lists the names."""
    if name not in BY_NAME:
        raise ValueError(
            f"verifier: unknown rule {name!r}; one of {', '.join(BY_NAME)}"
        )
    return BY_NAME[name]()


__all__ = [
    "BY_NAME",
    "GlobalResolution",
    "GreedyDraft",
    "KSeq",
    "Khisti",
    "Naive",
    "RecursiveRejection",
    "SingleDraft",
    "SpecHub",
    "TargetSample",
    "TruncatedGlobalResolution",
    "by_name",
]
