"""What stands in a picture of a tree."""

import sys

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.base import Walk
from globalres_jax.drawing import draw_tree


class Letters:
    """A tokenizer of single characters, some of which cannot be seen."""

    def decode(self, tokens):
        return "".join("a \n$"[token] for token in tokens)


TREE = gr.paths(2, 2)
#: Both paths begin with a space, so that these two nodes are one.
TOKENS = np.array([0, 1, 1, 2, 3])


@pytest.fixture(autouse=True)
def nothing_is_shown():
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


def test_nodes_that_spell_the_same_are_one():
    walk = Walk(jnp.array([2, 4]), jnp.array(2), jnp.array(0))
    weights = np.array([1, 0.25, 0.25, 0.1, 0.3])
    axes = draw_tree(TREE, TOKENS, Letters(), weights, walk)
    axes.figure.canvas.draw()
    labels = [text.get_text() for text in axes.texts]
    nodes = ["a\n1.00", "·\n0.50 (2 drafts)", "↵\n0.10", "$\n0.30"]
    assert sorted(labels) == sorted([*nodes, "a\nnext token"])
    # Each node hangs on the one above it, and the next token on the last accepted.
    assert len(axes.lines) == len(labels) - 1
    widths = sorted(line.get_linewidth() for line in axes.lines)
    assert widths == [1, 2.5, 2.5, 2.5]


def test_a_tree_alone_on_axes_of_ones_own():
    axes = matplotlib.pyplot.subplots()[1]
    assert draw_tree(TREE, TOKENS, Letters(), axes=axes) is axes
    labels = sorted(text.get_text() for text in axes.texts)
    assert labels == sorted(["a", "· (2 drafts)", "↵", "$"])


def test_arguments_that_do_not_fit(monkeypatch):
    with pytest.raises(ValueError, match=r"tokens: expected shape \(5,\)"):
        draw_tree(TREE, TOKENS[:4], Letters())
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\)"):
        draw_tree(TREE, TOKENS, Letters(), weights=np.ones((1, 5)))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_tree(TREE, TOKENS, Letters())
