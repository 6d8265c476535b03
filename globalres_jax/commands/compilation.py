"""Compiled programs, kept in a folder of the user's for the next command."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

VARIABLE = "GLOBALRES_JAX_CACHE"
#: Programs that compile faster than this are not kept.
LEAST_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the option that all commands share."""
    parser.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help="compile everything anew, keep nothing. Else compiled programs are kept in"
        f" the user's cache folder; {VARIABLE}=PATH is another folder, {VARIABLE}=0"
        " none",
    )


@contextlib.contextmanager
def kept_programs(refused: bool = False) -> Iterator[str | None]:
    """JAX's compilation cache in a folder of its own while a command runs.

    A folder that cannot be written to is no error, the command goes on without; nor are
    entries that cannot be read or written later. A cache that the user has given to JAX
    itself (`JAX_COMPILATION_CACHE_DIR`) stays in its place.

    Args:
      refused: whether to keep nothing, and to use nothing kept.

    Yields:
      A line that says what came of it; None if there is nothing to say.
    """
    wanted = os.environ.get(VARIABLE, "")
    options, said = {}, None
    if refused or wanted == "0":
        options["jax_enable_compilation_cache"] = False
    elif wanted or not jax.config.jax_compilation_cache_dir:
        try:
            folder = Path(wanted).absolute() if wanted else cache_folder()
            _check_writable(folder)
        except (OSError, RuntimeError) as error:
            options["jax_enable_compilation_cache"] = False
            said = f"compiled programs are not kept: {error}"
        else:
            options |= {
                "jax_compilation_cache_dir": str(folder),
                "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
                "jax_persistent_cache_min_entry_size_bytes": -1,
            }
            said = f"compiled programs are kept in {folder}"
    with _configured(options), warnings.catch_warnings():
        trouble = r"Error (reading|writing) persistent compilation cache"
        warnings.filterwarnings("ignore", trouble)
        yield said


def cache_folder(
    variables: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> Path:
    """The folder for compiled programs below the user's cache folder.

    Raises:
      RuntimeError: the system does not say where the user's home is.
    """
    if platform == "win32":
        given, usual = variables.get("LOCALAPPDATA", ""), ("AppData", "Local")
    elif platform == "darwin":
        given, usual = "", ("Library", "Caches")
    else:
        # A relative path is to be ignored, says the specification of the variable.
        given, usual = variables.get("XDG_CACHE_HOME", ""), (".cache",)
        given = given if given.startswith("/") else ""
    base = Path(given) if given else Path.home().joinpath(*usual)
    return base / "globalres_jax" / "xla"


def _check_writable(folder: Path) -> None:
    """Makes the folder, for its owner alone; OSError if nothing can be kept there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(1 << 16))


@contextlib.contextmanager
def _configured(options: Mapping[str, object]) -> Iterator[None]:
    """JAX with these options, and afterwards as it was."""
    before = {name: getattr(jax.config, name) for name in options}

    def update(values: Mapping[str, object]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        if values:
            reset_cache()  # it looks at its options once

    update(options)
    try:
        yield
    finally:
        update(before)
