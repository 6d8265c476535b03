"""The notebooks run top to bottom, here with small numbers; their outputs are kept.

They run in this process, whose models and programs they share. In kernels of their own
`benchmarks/notebooks.py` runs them as they stand.
"""

import json
import warnings
from pathlib import Path

import loaded
import matplotlib
import pytest
from IPython.core.interactiveshell import InteractiveShell

import globalres_jax as gr

NOTEBOOKS = sorted((Path(__file__).parent.parent / "colab").glob("*.ipynb"))
EMBEDDED = Path(gr.models.__file__).parent / "embedded"
#: What the cell tagged `parameters` sets, made small.
SMALL = {
    "00_quickstart": {},
    "10_acceptance": {
        "POSITIONS": 4,
        "TOP_K": (5, 10),
        "NUM_DRAFTS": (1, 2),
        "TEMPERATURES": (0.5, 1.0),
        "RULES": {"k-SEQ": gr.verifiers.KSeq()},
        "LAWS": {"independent": gr.IID},
    },
    "20_trees": {
        "TREES": 1,
        "TREE": gr.paths(2, 2),
        "RULES": {"LayerResolution": gr.tree_verifiers.LayerResolution()},
        "SHAPES": {"2 paths of 2": gr.paths(2, 2)},
    },
    "30_differentiable": {
        "STEPS": 2,
        "SEEDS": 1,
        "VOCABULARY": 8,
        "TREES": 1,
        "LOSSES": {"KL": gr.losses.kl_divergence},
    },
    "40_your_models": {
        "TARGET": EMBEDDED / "draft",
        "CONFIG": gr.SpeculativeConfig(draft_length=0, log_probabilities=True),
        "NEW_TOKENS": 8,
    },
    "50_train_a_draft": {
        "KINDS": ("embedding",),
        "TEXTS": 24,
        "LENGTH": 16,
        "STEPS": 2,
        "LOOK": 1,
        "MORE": ("--num-tokens", "48", "--hidden-size", "32", "--mlp-width", "32"),
    },
}


class CellError(Exception):
    """A cell of a notebook went wrong."""


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict, small: dict) -> dict:
    """Runs the cells in one shell, and returns the names that they leave.

    Raises:
      CellError: a cell raised, or a name of `small` is none that the notebook sets.
    """
    shell, seen = InteractiveShell(), 0
    shell.history_manager.enabled = False
    for number, cell in enumerate(code_cells(notebook)):
        outcome = shell.run_cell("".join(cell["source"]), store_history=False)
        if error := outcome.error_before_exec or outcome.error_in_exec:
            raise CellError(f"code cell {number}: {error!r}") from error
        if "parameters" in cell["metadata"].get("tags", ()):
            if unknown := set(small) - set(shell.user_ns):
                raise CellError(f"code cell {number} sets no {unknown}")
            shell.user_ns.update(small)
            seen += len(small)
    if seen != len(small):
        raise CellError("no cell is tagged `parameters`")
    return shell.user_ns


@pytest.fixture
def same_models(monkeypatch):
    """The embedded pair of all tests, by whatever name it is asked for."""
    load_pair, load_one = gr.models.load_pair, gr.models.load
    pair, names = loaded.embedded(), ("embedded", "embedded-draft")

    def load(name, *args, **kwargs):
        if args or kwargs:
            return load_one(name, *args, **kwargs)
        return pair[names.index(name)]

    def load_both(*args, **kwargs):
        return pair if args == names and not kwargs else load_pair(*args, **kwargs)

    monkeypatch.setattr(gr.models, "load", load)
    monkeypatch.setattr(gr.models, "load_pair", load_both)


@pytest.fixture
def pictures():
    """Figures that are drawn, and shown nowhere."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield plt
    plt.close("all")


def test_every_notebook_is_run():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


#: These take long to compile; what they call has tests of its own.
SLOW = ("20_trees", "30_differentiable", "50_train_a_draft")
RUNS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.sweep] * (path.stem in SLOW))
    for path in NOTEBOOKS
]


@pytest.mark.parametrize("path", RUNS)
def test_notebook_runs(path, same_models, pictures):
    notebook = json.loads(path.read_text("utf-8"))
    run(notebook, SMALL[path.stem])
    for number in pictures.get_fignums():
        pictures.figure(number).canvas.draw()
    drawn = "image/png" in json.dumps(notebook)
    assert drawn == bool(pictures.get_fignums())


def test_a_cell_that_fails_fails():
    cell = {"cell_type": "code", "source": ["1 / 0"], "metadata": {}}
    with pytest.raises(CellError, match="code cell 0: ZeroDivisionError"):
        run({"cells": [cell]}, {})
    cell = {**cell, "source": ["A = 1"], "metadata": {"tags": ["parameters"]}}
    with pytest.raises(CellError, match=r"sets no .'B'"):
        run({"cells": [cell]}, {"B": 2})
    with pytest.raises(CellError, match="no cell"):
        run({"cells": []}, {"B": 2})


def test_outputs_are_of_one_run_and_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_000_000
    install = set()
    for path in NOTEBOOKS:
        cells = code_cells(json.loads(path.read_text("utf-8")))
        counts = [cell["execution_count"] for cell in cells]
        assert counts == list(range(1, len(cells) + 1)), path.stem
        kinds = {out["output_type"] for cell in cells for out in cell["outputs"]}
        assert "error" not in kinds and kinds, path.stem
        install.add("".join(cells[0]["source"]))
    assert len(install) == 1 and "%pip install" in install.pop()
