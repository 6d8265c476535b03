"""The whole command on the embedded pair: texts, rows, steps, an interruption."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax import models
from globalres_jax.__main__ import main
from globalres_jax.models.draft_training import run as runs
from globalres_jax.models.draft_training.run import memory_advice
from globalres_jax.models.draft_training.texts import Texts
from globalres_jax.models.drafts import read_draft
from globalres_jax.models.pairs import keep_layers

SIZES = (
    *("--texts", "6", "--rows", "4", "--length", "16", "--batch", "2"),
    *("--num-tokens", "48", "--hidden-size", "32", "--mlp-width", "32"),
    *("--steps", "4", "--look", "2", "--rollout", "2", "--learning-rate", "1e-2"),
)


def command(out, *more, sizes=SIZES):
    return main(
        ["train-draft", "--target", "embedded", "--out", str(out), *sizes, *more]
    )


def log(out):
    lines = (out / "training" / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def target():
    """One layer of the embedded target: all that the command compiles is smaller."""
    return keep_layers(models.load("embedded"), (0,))


@pytest.fixture
def small(target, monkeypatch):
    """The command finds that target under the name of the whole one."""
    monkeypatch.setattr(models, "load", lambda *_: target)


@pytest.fixture(scope="module")
def whole(target, tmp_path_factory):
    out = tmp_path_factory.mktemp("drafts") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda *_: target)
        assert command(out) == 0
    return out


def test_draft_is_written_with_its_card(whole, target):
    config, params, card = read_draft(whole, target)
    assert len(config.ids) == 48 and config.hidden_size == 32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert card["run"]["schedule"]["steps"] == 4
    assert card["texts"] == 6 and card["held_out"]["texts"] == 4
    texts = Texts.read(whole / "training" / "texts" / "part-00001.npz")
    assert (texts.lengths > texts.starts).all()


def test_looks_are_kept_and_the_best_is_the_draft(whole, target):
    looks = [line for line in log(whole) if "accepted_length" in line]
    assert [line["step"] for line in looks] == [0, 2, 4]
    best = max(looks, key=lambda line: line["accepted_length"])
    card = read_draft(whole, target).card
    assert card["held_out"]["accepted_length"] == best["accepted_length"]
    for line in looks:
        assert 0 < line["acceptance_1"] < line["acceptance_2"] < line["acceptance_4"]
        assert line["acceptance_1"] == pytest.approx(
            line["acceptance_by_depth"][0], abs=0.15
        )


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on_to_the_same_losses(
    whole, tmp_path, monkeypatch, capsys
):
    out, note = tmp_path / "again", runs._note

    def interrupt(loss, seen):
        if log(out)[-1]["step"] == 3:
            raise KeyboardInterrupt
        return note(loss, seen)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_note", interrupt)
        assert command(out) == 130
    assert [line["step"] for line in log(out)] == [0, 1, 2, 2, 3]
    assert command(out) == 2
    assert "holds another run" in capsys.readouterr().err
    assert command(out, "--seed", "1", "--resume") == 2
    assert "seed 0, not 1" in capsys.readouterr().err
    assert command(out, "--resume") == 0
    assert log(out) == log(whole)
    written = [folder / "model.safetensors" for folder in (out, whole)]
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.usefixtures("small")
def test_bad_input_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "short.txt").write_text("To be, or not to be")
    (tmp_path / "few.txt").write_text("To be, or not to be, that is the question. " * 3)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "ROMEO: But soft, what light is that"}\n')
    (tmp_path / "broken.jsonl").write_text('{"prompts": "ROMEO:"}\n')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    fresh = tmp_path / "fresh"
    wrong = {
        ("--text", str(tmp_path / "short.txt")): "and a row (length) takes 16",
        ("--text", str(tmp_path / "few.txt"), "--batch", "8"): "lower --batch",
        ("--resume",): "holds no run",
        ("--texts", "1"): "less than a batch",
        ("--length", "1"): "leave no room for a text",
        ("--prompts", str(asked), "--length", "4"): "none leaves room for a text",
        ("--prompts", str(asked), "--texts", "0"): "no texts are to answer them",
        ("--prompts", str(tmp_path / "broken.jsonl")): "line 1: unknown name 'prompts'",
        ("--prompts", str(tmp_path / "none.jsonl")): "none.jsonl",
        ("--steps", "0"): "--steps: must be at least 1",
        ("--num-tokens", "1000000"): "--num-tokens: 1000000 of a target",
        ("--from", str(tmp_path / "other")): "draft: no config.json",
    }
    for more, said in wrong.items():
        few = [] if "--texts" in more or "--text" not in more else ["--texts", "0"]
        assert command(fresh, *few, *more) == 2, more
        assert said in capsys.readouterr().err, more
        assert not fresh.exists()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "orbax.checkpoint", None)
        assert command(fresh) == 2
        assert "pip install 'globalres_jax[train]'" in capsys.readouterr().err
        assert not fresh.exists()
    assert command(tmp_path / "other") == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_draft_of_another_vocabulary_is_refused(whole, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((whole / name).read_bytes())
    said = json.loads((other / "config.json").read_text())
    said["target"]["vocab_size"] = 7
    (other / "config.json").write_text(json.dumps(said))
    assert command(tmp_path / "out", "--from", str(other)) == 2
    assert "fits a target of 7 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_target_without_tokenizer_is_refused(tmp_path, target, monkeypatch, capsys):
    silent = dataclasses.replace(target, tokenizer=None)
    monkeypatch.setattr(models, "load", lambda *_: silent)
    assert command(tmp_path / "out") == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_too_little_memory_names_the_option_to_lower():
    with pytest.raises(MemoryError, match=r"lower --batch"), memory_advice("--batch"):
        jnp.zeros((1 << 20, 1 << 24), jnp.float32).block_until_ready()
    with pytest.raises(ValueError, match="else"), memory_advice("--batch"):
        raise ValueError("something else")


@pytest.mark.sweep
def test_two_devices_learn_the_same(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count="
    one, two = tmp_path / "one", tmp_path / "two"
    for out, count in ((one, "1"), (two, "2")):
        options = [*SIZES, "--data", count, "--out", str(out)]
        words = ["train-draft", "--target", "embedded", *options]
        subprocess.run(
            [sys.executable, "-m", "globalres_jax", *words],
            env={**os.environ, "XLA_FLAGS": flags + count, "JAX_PLATFORMS": "cpu"},
            check=True,
            timeout=540,
        )
    pairs = zip(log(one), log(two), strict=True)
    losses = [(a["loss"], b["loss"]) for a, b in pairs if "loss" in a]
    assert len(losses) == 4
    np.testing.assert_allclose(*np.transpose(losses), rtol=2e-3)


@pytest.mark.sweep
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("kind", ["feature", "embedding", "layers"])
def test_two_hundred_steps_make_a_draft_that_is_accepted(kind, tmp_path):
    out = tmp_path / kind
    sizes = (
        *("--kind", kind, "--texts", "64", "--length", "64", "--batch", "4"),
        *("--steps", "200", "--num-tokens", "512", "--learning-rate", "2e-3"),
    )
    assert command(out, sizes=sizes) == 0
    losses = [line["loss"] for line in log(out) if "loss" in line]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    said = ["generate", "--draft", str(out), "--prompt", "ROMEO:", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(said) == 0
    metrics = json.loads(printed.getvalue())["metrics"]
    assert metrics["num_accepted_draft_tokens"] > 0
