"""What is printed of a text."""

import json

import numpy as np

from globalres_jax.commands.printing import TimedGeneration, as_json
from globalres_jax.decoding.generation import Generation
from globalres_jax.decoding.metrics import empty_metrics


class Letters:
    """A tokenizer that only reads."""

    def decode_continuation(self, prompt, tokens):
        return "".join("abcdef"[token] for token in tokens)

    def decode_pieces(self, prompt, tokens):
        return ["abcdef"[token] for token in tokens]


def generation(**changes):
    return Generation(
        tokens=np.array([[3, 1, -1]]),
        lengths=np.array([2]),
        from_draft=np.zeros((1, 3), bool),
        metrics=empty_metrics(1, 2),
        failed=np.array([False]),
        stopped=np.array([True]),
        **changes,
    )


def test_log_probabilities_as_json_has_them():
    """Beyond the text there are none, and an infinite one is null."""
    top = np.float32([[[-0.5, -1], [-0.25, -np.inf], [0, 0]]])
    result = generation(
        log_probabilities=np.float32([[-0.5, -3, 0]]),
        sampling_log_probabilities=np.float32([[0, -2, 0]]),
        top_tokens=np.array([[[3, 1], [2, 0], [-1, -1]]]),
        top_log_probabilities=top,
    )
    timed = TimedGeneration(result, 1.0, 1.0)
    described = as_json(Letters(), "x", {"speculative": timed}, [0])
    assert json.loads(json.dumps(described, allow_nan=False))["log_probabilities"] == [
        {
            "token": 3,
            "log_probability": -0.5,
            "sampling_log_probability": 0.0,
            "top_tokens": [3, 1],
            "top_log_probabilities": [-0.5, -1.0],
        },
        {
            "token": 1,
            "log_probability": -3.0,
            "sampling_log_probability": -2.0,
            "top_tokens": [2, 0],
            "top_log_probabilities": [-0.25, None],
        },
    ]
    bare = as_json(
        Letters(), "x", {"speculative": TimedGeneration(generation(), 1, 1)}, [0]
    )
    assert "log_probabilities" not in bare and bare["text"] == "db"


def test_a_text_that_was_cut_is_shown_so():
    timed = TimedGeneration(generation(texts=["d"]), 1.0, 1.0)
    described = as_json(Letters(), "x", {"speculative": timed}, [0])
    assert described["text"] == "d" and described["num_tokens"] == 2
    assert timed.pieces(Letters(), [0]) == ["d", ""]
