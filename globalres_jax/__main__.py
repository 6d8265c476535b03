"""Command line: `python -m globalres_jax {generate,acceptance} ...`."""

from __future__ import annotations

import argparse
import sys

from globalres_jax.commands import acceptance, compilation, generate

COMMANDS = {"generate": generate, "acceptance": acceptance}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status (2 for bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m globalres_jax",
        description="Optimal multi-draft speculative sampling.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        compilation.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        with compilation.kept_programs(args.no_compilation_cache) as said:
            if said and getattr(args, "verbose", False):
                print(said, file=sys.stderr)
            COMMANDS[args.command].run(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
