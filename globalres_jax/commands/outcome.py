"""How a command ends: its exit status, and what it says where it fails."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import jax

from globalres_jax.interruption import STATUS as INTERRUPTED

BAD_INPUT, CLOSED_PIPE = 2, 141


def exit_status(command: Callable[[], None]) -> int:
    """Runs a command; errors for people become a line on stderr.

    Nobody who has closed the other end of a pipe wants to hear of it.

    Returns:
      0; 2 for bad input, 130 for Ctrl-C, 141 for a pipe that was closed, the last two
      as a shell has them.
    """
    try:
        try:
            command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            _forget_output()
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not _is_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        print(f"error: there is not enough memory: {reason}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _is_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _forget_output() -> None:
    """Lets what is still to be written go nowhere, where it cannot be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
