"""Command line: `python -m globalres_jax {generate,acceptance,train-draft} ...`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from globalres_jax.commands import acceptance, compilation, generate, train_draft
from globalres_jax.commands.outcome import exit_status

COMMANDS = {
    "generate": generate,
    "acceptance": acceptance,
    "train-draft": train_draft,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status, see `commands.outcome`."""
    return exit_status(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    """Reads the arguments and runs what they name."""
    parser = argparse.ArgumentParser(
        prog="python -m globalres_jax",
        description="Optimal multi-draft speculative sampling.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        summary = command.SUMMARY
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        compilation.add_arguments(subparser)
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # What the terminal cannot show must not end a command.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    with compilation.kept_programs(args.no_compilation_cache) as said:
        if said and getattr(args, "verbose", False):
            print(said, file=sys.stderr)
        COMMANDS[args.command].run(args)


if __name__ == "__main__":
    sys.exit(main())
