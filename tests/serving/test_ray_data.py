"""Columns of prompts get columns of texts, the same ones however they are cut."""

import importlib.util

import numpy as np
import pytest
from summing import LETTERS, summing_model

import globalres_jax as gr
from globalres_jax.serving import ray_data
from globalres_jax.serving.ray_data import TextGenerator

CONFIG = gr.SpeculativeConfig(
    num_drafts=1,
    draft_length=2,
    verifier=gr.verifiers.SingleDraft(),
    cache_length=64,
)


@pytest.fixture
def generator(monkeypatch):
    pair = summing_model(0, LETTERS), summing_model(1)
    monkeypatch.setattr(ray_data.models, "load_pair", lambda *_: pair)
    return TextGenerator(config=CONFIG, batch=2, max_tokens=7)


def test_columns_get_texts_in_their_order_however_they_are_cut(generator):
    prompts = ["abc", "b" * 60, "xyz", "dead", "", "hg"]
    columns = {
        "prompt": np.asarray(prompts, object),
        "max_tokens": np.asarray([np.nan, 9, 9, 3, 9, 40]),
        "temperature": np.asarray([0.5, 1, 1, np.nan, 1, -1.0]),
        "seed": np.arange(6),
        "kept": np.arange(6),
    }
    found = generator(columns)
    assert found["kept"].tolist() == list(range(6))
    assert found["num_tokens"].tolist() == [7, 0, 0, 3, 0, 0]
    for row, message in (
        (1, "cache_length: 60 prompt tokens, 9 new"),
        (2, "text: 'xyz' has other letters"),
        (4, "prompt: empty"),
        (5, "temperature: must be 0 or more, got -1"),
    ):
        assert found["error"][row].startswith(message) and found["text"][row] == ""
        assert found["finish_reason"][row] == "error"
    for row in (0, 3):
        assert found["error"][row] == "" and found["finish_reason"][row] == "length"
        text = LETTERS.decode_continuation((), found["tokens"][row])
        assert found["text"][row] == text and len(text) == found["num_tokens"][row]
        assert found["mean_acceptance_length"][row] >= 1
    cut = [generator({k: v[i : i + 1] for k, v in columns.items()}) for i in range(6)]
    assert [x["text"][0] for x in cut] == found["text"].tolist()
    assert generator({"prompt": np.asarray([], object)})["text"].shape == (0,)


def test_what_is_no_generator_is_refused(generator):
    with pytest.raises(ValueError, match="config: its cache_length is None"):
        TextGenerator(config=gr.SpeculativeConfig())
    with pytest.raises(TypeError, match="config: expected a SpeculativeConfig"):
        TextGenerator(config=3)
    with pytest.raises(ValueError, match="max_new_tokens: must be at least 1"):
        TextGenerator(config=CONFIG, max_tokens=0)
    with pytest.raises(ValueError, match="batch: must be at least 1"):
        TextGenerator(config=CONFIG, batch=0)


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray, `pip install globalres_jax[ray]`; it is too large for all tests",
)
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own parts
def test_two_workers_write_what_one_process_writes():
    import ray

    config = gr.SpeculativeConfig(num_drafts=1, draft_length=2, cache_length=64)
    arguments = {"config": config, "batch": 4, "max_tokens": 6}
    rng = np.random.default_rng(0)
    names = ("ROMEO:", "JULIET:", "First Citizen:", "KING RICHARD III:\nNow")
    rows = [
        {"prompt": str(rng.choice(names)), "seed": seed, "max_tokens": 1 + seed % 6}
        for seed in range(200)
    ]
    columns = {
        name: np.asarray(
            [row[name] for row in rows], object if name == "prompt" else None
        )
        for name in rows[0]
    }
    alone = TextGenerator(**arguments)(columns)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        found = (
            ray.data.from_items(rows, override_num_blocks=10)
            .map_batches(
                TextGenerator,
                fn_constructor_kwargs=arguments,
                concurrency=2,
                batch_size=20,
                num_cpus=1,
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    by_seed = {row["seed"]: row for row in found}
    assert len(found) == len(by_seed) == 200
    for seed in range(200):
        np.testing.assert_array_equal(by_seed[seed]["tokens"], alone["tokens"][seed])
        assert by_seed[seed]["text"] == alone["text"][seed]
