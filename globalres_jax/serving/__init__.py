"""Many requests through one compiled step: rows that have ended are replaced."""

from globalres_jax.serving.requests import Completion, GenerationRequest
from globalres_jax.serving.scheduler import generate_many

__all__ = ["Completion", "GenerationRequest", "generate_many"]
