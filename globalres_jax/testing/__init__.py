"""Exact checks that users can run on their own rules: enumeration and an LP oracle.

For small vocabularies. Enable `jax_enable_x64` for float64 answers.
"""

from globalres_jax.testing.longest_run import longest_run
from globalres_jax.testing.markov import CountingCache, markov_model
from globalres_jax.testing.positions import (
    Enumeration,
    acceptance_rate,
    draft_tuples,
    enumerate_decisions,
    enumerate_outcomes,
    linear_program,
    output_law,
)
from globalres_jax.testing.steps import (
    expected_length,
    joint_law,
    random_tables,
    step_law,
)

__all__ = [
    "CountingCache",
    "Enumeration",
    "acceptance_rate",
    "draft_tuples",
    "enumerate_decisions",
    "enumerate_outcomes",
    "expected_length",
    "joint_law",
    "linear_program",
    "longest_run",
    "markov_model",
    "output_law",
    "random_tables",
    "step_law",
]
