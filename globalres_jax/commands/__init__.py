"""The subcommands of `python -m globalres_jax`, one a file.

Each has a `SUMMARY`, `add_arguments(parser)` and `run(args)`; `run` raises ValueError,
TypeError or OSError with a message for people. `loading.py`, `compilation.py`,
`seeds.py` and `outcome.py` are no commands but what commands share.
"""
