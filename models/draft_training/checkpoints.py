"""Checkpoints of a run, by Orbax: what a step leaves behind, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

#: Checkpoints that are kept.
_KEPT = 2


def import_orbax():
    """Orbax, which takes its time to import; ValueError if it is not installed."""
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ValueError(
            "checkpoints need Orbax, and it is not installed (pip install "
            f"'globalres_jax[train]'): {error}"
        ) from error
    return orbax


class Checkpoints:
    """The newest states of a run in a folder."""

    def __init__(self, folder: Path):
        """Opens the folder, which is made if it is not there."""
        orbax = import_orbax()
        options = orbax.CheckpointManagerOptions(
            max_to_keep=_KEPT, enable_async_checkpointing=False
        )
        self._args = orbax.args
        self._manager = orbax.CheckpointManager(folder.resolve(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Keeps a pytree of arrays."""
        self._manager.save(step, args=self._args.StandardSave(_by_number(state)))
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """The newest state, placed as the arrays of `like` are.

        Raises:
          ValueError: it does not have their shapes.
        """
        wanted = _by_number(like)
        kept = self._manager.restore(
            self.latest, args=self._args.StandardRestore(wanted)
        )
        for name, leaf in wanted.items():
            if np.shape(kept[name]) != np.shape(leaf):
                raise ValueError(
                    f"--resume: the checkpoint of step {self.latest} has an array of "
                    f"shape {np.shape(kept[name])}, and this run needs {np.shape(leaf)}"
                )
        leaves = [jax.device_put(kept[name], x.sharding) for name, x in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def close(self) -> None:
        """Ends the threads that write."""
        self._manager.close()


def _by_number(state: Any) -> dict[str, Any]:
    """The leaves under names of one length, whatever the containers are."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
