"""Draft laws: the joint law of the tokens drafted at one position, one a file."""

from globalres_jax.draft_laws.deterministic import Deterministic, likeliest
from globalres_jax.draft_laws.iid import IID
from globalres_jax.draft_laws.independent import Independent
from globalres_jax.draft_laws.law import DraftLaw, Moments
from globalres_jax.draft_laws.top_plus_sample import TopPlusSample
from globalres_jax.draft_laws.without_replacement import WithoutReplacement

#: Command-line names of the laws that one draft distribution and n define.
BY_NAME = {
    "iid": IID,
    "without-replacement": WithoutReplacement,
    "top-plus-sample": TopPlusSample,
}

__all__ = [
    "BY_NAME",
    "IID",
    "Deterministic",
    "DraftLaw",
    "Independent",
    "Moments",
    "TopPlusSample",
    "WithoutReplacement",
    "likeliest",
]
