"""Runs the notebooks, each in a kernel of its own, and keeps what they print and draw.

    python benchmarks/notebooks.py [NAME ...] [--check]

What a reader of the repository sees in `colab/` was written by this command. It reports
the seconds of each notebook and the size of what is kept. With `--check` nothing is
kept. Wants `pip install '.[notebooks]'`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "colab"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; an error in a cell is an error here."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    return tidied(notebook)


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from machine to machine."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Warnings are of this machine, too.
            cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
        cell.metadata.pop("execution", None)
    keep = ("kernelspec", "language_info")
    notebook.metadata = {key: notebook.metadata[key] for key in keep}
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="such as 10_acceptance; all if none")
    parser.add_argument("--check", action="store_true", help="keep no outputs")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path, start = FOLDER / f"{name}.ipynb", time.perf_counter()
        notebook = executed(path)
        seconds = time.perf_counter() - start
        if not args.check:
            nbformat.write(notebook, path)
        kilobytes = path.stat().st_size / 1000
        print(f"{name}: {seconds:.0f} s, {kilobytes:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
