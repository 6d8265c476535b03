"""The subcommands of `python -m globalres_jax`, one a file.

Each has `add_arguments(parser)` and `run(args)`; `run` raises ValueError, TypeError
or OSError with a message for people. `loading.py` and `compilation.py` are no commands
but what commands share.
"""
