import jax.numpy as jnp
import pytest
from markov_pairs import DRAFT, TARGET

import globalres_jax as gr
from globalres_jax.base import Model


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    return tuple(
        gr.testing.markov_model(jnp.asarray(x, jnp.float32)) for x in (TARGET, DRAFT)
    )
