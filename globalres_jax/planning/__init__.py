"""Which draft tree pays: measured costs, measured acceptance, and the best shape."""

from globalres_jax.planning.acceptance import Acceptance, independent
from globalres_jax.planning.automatic import Plan, forget, learn, observe
from globalres_jax.planning.choose import best_shape, tokens_per_second
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.draws import Draws
from globalres_jax.planning.estimates import Estimates
from globalres_jax.planning.shapes import CANDIDATES, PLAIN, Shape, parse_shape
from globalres_jax.planning.store import kept_in

__all__ = [
    "CANDIDATES",
    "PLAIN",
    "Acceptance",
    "Costs",
    "Draws",
    "Estimates",
    "Plan",
    "Shape",
    "best_shape",
    "forget",
    "independent",
    "kept_in",
    "learn",
    "observe",
    "parse_shape",
    "tokens_per_second",
]
