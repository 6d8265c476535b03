"""Optimal multi-draft speculative sampling in JAX.

p is always the target's distribution, q the draft's. Start with `generate` for text,
or with `solve_transport` and `verifiers` for one position.
"""

from pathlib import Path

# In a source checkout models/ lies beside this folder, in a wheel inside it.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from globalres_jax import models, testing, verifiers
from globalres_jax.base import Decision, Model
from globalres_jax.config import SpeculativeConfig
from globalres_jax.decoding import Generation, generate
from globalres_jax.draft_laws import IID
from globalres_jax.metrics import Metrics
from globalres_jax.solvers import BoxLBFGS, ProjectedNewton
from globalres_jax.subset_selection import optimal_acceptance_rate
from globalres_jax.transport import TransportPlan, solve_transport
from globalres_jax.tree import TokenTree, paths

__all__ = [
    "IID",
    "BoxLBFGS",
    "Decision",
    "Generation",
    "Metrics",
    "Model",
    "ProjectedNewton",
    "SpeculativeConfig",
    "TokenTree",
    "TransportPlan",
    "generate",
    "models",
    "optimal_acceptance_rate",
    "paths",
    "solve_transport",
    "testing",
    "verifiers",
]
