"""`python -m globalres_jax acceptance` as a stranger would use it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax import evaluation
from globalres_jax.__main__ import main
from globalres_jax.commands.acceptance import load_logits
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.evaluation import mean_optima
from globalres_jax.verifiers import BY_NAME


@pytest.fixture
def logits_file(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(4, 12)).astype(np.float16) * 3
    draft = (target + rng.normal(size=(4, 12))).astype(np.float16)
    np.savez(tmp_path / "pair.npz", target=target, draft=draft)
    return tmp_path / "pair.npz"


def test_acceptance_table_and_json(logits_file, capsys):
    assert main(["acceptance", str(logits_file), "--num-drafts", "3", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    optimum = described["optimum"]
    rates = {k: v["acceptance_rate"] for k, v in described["rules"].items()}
    assert set(rates) == set(BY_NAME) - {"greedy-draft", "spec-hub"}
    assert rates["global-resolution"] == pytest.approx(optimum, abs=2e-5)
    assert rates["single-draft"] < rates["recursive-rejection"] < optimum
    assert described["not_measured"] == {
        "greedy-draft": "GreedyDraft serves TopPlusSample, got IID",
        "spec-hub": "SpecHub serves TopPlusSample, got IID",
    }


def test_acceptance_of_another_law(logits_file, capsys):
    options = ["--law", "top-plus-sample", "--num-drafts", "2", "--json"]
    assert main(["acceptance", str(logits_file), *options]) == 0
    described = json.loads(capsys.readouterr().out)
    rates = {k: v["acceptance_rate"] for k, v in described["rules"].items()}
    for name in ("spec-hub", "greedy-draft", "global-resolution"):
        assert rates[name] == pytest.approx(described["optimum"], abs=2e-5)
    assert rates["target-sample"] < described["optimum"]
    assert "recursive-rejection" not in rates
    assert {*rates, *described["not_measured"]} == set(BY_NAME)


def test_the_table_tells_of_every_rule(logits_file, capsys, monkeypatch):
    few = {name: BY_NAME[name] for name in ("target-sample", "k-seq")}
    monkeypatch.setattr(evaluation, "RULES", few)
    monkeypatch.setenv("COLUMNS", "120")
    options = ["--law", "all", "--num-drafts", "2"]
    assert main(["acceptance", str(logits_file), *options]) == 0
    out = capsys.readouterr().out
    assert out.count("optimum") == 6 and "Best law per position: 0." in out
    assert out.count("target-sample") == out.count("k-seq") == 3
    (row,) = [line for line in out.splitlines() if "got TopPlusSample" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["k-seq", "-", "KSeq serves IID, got TopPlusSample"]


def test_every_rule_has_a_rate_or_a_reason(monkeypatch):
    """Also where one of them would take too long, or too few tokens can be drafted."""
    monkeypatch.setattr(evaluation, "CLOCKS_SUPPORT", 5)
    monkeypatch.setattr(evaluation, "SAMPLES", 4)
    p, q = (jnp.asarray(np.eye(6, dtype=np.float32)[[i, i]]) for i in (0, 1))
    found = evaluation.compare_rules(p, q, LAWS["without-replacement"], 3, None)
    assert {*found["rules"], *found["not_measured"]} == set(BY_NAME)
    assert not {*found["rules"]} & {*found["not_measured"]}
    assert "up to 5 tokens, got 6" in found["not_measured"]["global-resolution"]
    reason = "KSeq serves IID, got WithoutReplacement"
    assert found["not_measured"]["k-seq"] == reason
    assert found["rules"]["naive"]["acceptance_rate"] == 0
    assert "standard_error" in found["rules"]["naive"]


def test_the_best_law_at_each_position_is_at_least_each_law(logits_file):
    logits = [np.asarray(x, np.float32) for x in load_logits(logits_file)]
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits)
    optima, best = mean_optima(jnp.asarray(p), jnp.asarray(q), 3, list(LAWS))
    assert set(optima) == {"iid", "without-replacement", "top-plus-sample"}
    assert max(optima.values()) <= best <= 1


def test_logits_may_be_bfloat16(tmp_path):
    import ml_dtypes

    logits = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "half.npz", target=logits[0], draft=logits[1])
    for loaded, stored in zip(load_logits(tmp_path / "half.npz"), logits, strict=True):
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, stored.astype(np.float32))


def test_acceptance_refuses_in_words(logits_file, tmp_path, capsys):
    def refuses(message, path, *options):
        assert main(["acceptance", str(path), *options]) == 2
        assert message in capsys.readouterr().err

    refuses("no such file", tmp_path / "none.npz")
    refuses("--num-drafts: must be at least 1", logits_file, "--num-drafts", "0")
    refuses("top_k: must be at least 1", logits_file, "--top-k", "0")
    other = tmp_path / "other.npz"
    np.savez(other, logits=np.zeros((2, 3)))
    refuses("has arrays ['logits'], needs target and draft", other)
    np.savez(other, target=np.zeros((2, 3)), draft=np.zeros((2, 4)))
    refuses("draft: has shape (2, 4), target (2, 3)", other)
    np.savez(other, target=np.zeros((2, 3)), draft=np.full((2, 3), np.nan))
    refuses("draft: contains NaN", other)
    np.savez(other, target=np.zeros((2, 3), int), draft=np.zeros((2, 3)))
    refuses("target: expected floating point", other)
    other.write_bytes(b"not an archive")
    refuses("is no .npz archive", other)
    other.write_bytes(logits_file.read_bytes()[:200])
    refuses("is no .npz archive", other)
