"""L-BFGS-B on the race dual: the second solver, slower and independent."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from globalres_jax.base import Array
from globalres_jax.transport.jaxopt_interface import OptStep, minimize_in_box
from globalres_jax.transport.quadrature import LOG_WEIGHT_BOUND, LOG_WEIGHT_FLOOR
from globalres_jax.transport.race import Race

#: The projected gradient to stop at, as a part of the acceptance gap asked for.
_GRADIENT_SHARE = 0.1


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxLBFGS:
    """jaxopt's L-BFGS-B on the race dual.

    Attributes:
      maxiter: largest number of iterations.
      tol: acceptance gap at which a plan counts as converged. The iteration itself
        stops on the projected gradient, at a tenth of this.
    """

    maxiter: int = 500
    tol: float = 1e-4

    def on_pools(self) -> None:
        """None: it solves every race by its tokens."""
        return None

    def run(self, init_params: Array, race: Race) -> OptStep:
        """Log-weights from `init_params [k]`, and a state with `iter_num`."""
        return minimize_in_box(
            race.dual_objective,
            init_params,
            low=jnp.full_like(init_params, LOG_WEIGHT_FLOOR),
            high=jnp.full_like(init_params, LOG_WEIGHT_BOUND),
            maxiter=self.maxiter,
            tol=_GRADIENT_SHARE * self.tol,
        )
