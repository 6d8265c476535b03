"""Optimal multi-draft speculative sampling in JAX."""

from pathlib import Path

# In a source checkout models/ lies beside this folder, in a wheel inside it.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from globalres_jax import testing, verifiers
from globalres_jax.draft_laws import IID
from globalres_jax.solvers import BoxLBFGS, ProjectedNewton
from globalres_jax.subset_selection import optimal_acceptance_rate
from globalres_jax.transport import TransportPlan, solve_transport
from globalres_jax.base import Decision, Model
from globalres_jax.config import SpeculativeConfig
from globalres_jax.decoding import Generation, generate
from globalres_jax.tree import TokenTree, paths
