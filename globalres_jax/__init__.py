"""Optimal multi-draft speculative sampling in JAX.

p is always the target's distribution, q the draft's. Start with `generate` for text,
or with `solve_transport` and `verifiers` for one position.
"""

import importlib
from pathlib import Path
from typing import Any

# In a source checkout models/ lies beside this folder, in a wheel inside it.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

# Before JAX is imported, which takes its time.
if (_interruption := importlib.import_module(f"{__name__}.interruption")).is_command():
    _interruption.watch()

from globalres_jax import (
    draft_laws,
    drafters,
    losses,
    planning,
    sharding,
    testing,
    tree,
    tree_verifiers,
    verifiers,
)
from globalres_jax.base import Decision, Model
from globalres_jax.bregman import Bregman
from globalres_jax.decoding.best_of_n import BestOfN, best_of_n
from globalres_jax.decoding.config import SpeculativeConfig
from globalres_jax.decoding.drafted import DraftedTree, draft_tree
from globalres_jax.decoding.generation import Generation
from globalres_jax.decoding.loop import compile_generate, generate
from globalres_jax.decoding.metrics import Metrics
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import plan
from globalres_jax.decoding.stream import Chunk, stream
from globalres_jax.draft_laws import (
    IID,
    Deterministic,
    Independent,
    TopPlusSample,
    WithoutReplacement,
)
from globalres_jax.drafters.prompt_lookup import PromptLookup
from globalres_jax.serving import Completion, GenerationRequest, generate_many
from globalres_jax.transport.box_lbfgs import BoxLBFGS
from globalres_jax.transport.newton import ProjectedNewton
from globalres_jax.transport.plan import (
    TransportPlan,
    optimal_acceptance_rate,
    solve_transport,
)
from globalres_jax.tree import TokenTree, paths

__all__ = [
    "IID",
    "BestOfN",
    "BoxLBFGS",
    "Bregman",
    "Chunk",
    "Completion",
    "Decision",
    "Deterministic",
    "DraftedTree",
    "Generation",
    "GenerationRequest",
    "Independent",
    "Metrics",
    "Model",
    "ProjectedNewton",
    "PromptLookup",
    "SamplingOptions",
    "SpeculativeConfig",
    "TokenTree",
    "TopPlusSample",
    "TransportPlan",
    "WithoutReplacement",
    "best_of_n",
    "compile_generate",
    "draft_laws",
    "draft_tree",
    "drafters",
    "generate",
    "generate_many",
    "losses",
    "models",
    "optimal_acceptance_rate",
    "paths",
    "plan",
    "planning",
    "sharding",
    "solve_transport",
    "stream",
    "testing",
    "tree",
    "tree_verifiers",
    "verifiers",
]


def __getattr__(name: str) -> Any:
    """Imports `globalres_jax.models` when it is first asked for: it takes its time."""
    if name == "models":
        return importlib.import_module("globalres_jax.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
