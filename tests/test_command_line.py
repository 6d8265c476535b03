"""`python -m globalres_jax` as a stranger would use it."""

import argparse
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.__main__ import main
from globalres_jax.commands.acceptance import load_logits, mean_optima
from globalres_jax.commands.generate import _pieces, _prompt_tokens, add_arguments
from globalres_jax.draft_laws import BY_NAME as LAWS
from globalres_jax.models import load

GENERATE = ["generate", "--prompt", "ROMEO:", "--draft-length", "2"]
GENERATE += ["--max-tokens", "12", "--seed", "3"]


@pytest.fixture
def logits_file(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(5, 40)).astype(np.float16) * 3
    draft = (target + rng.normal(size=(5, 40))).astype(np.float16)
    np.savez(tmp_path / "pair.npz", target=target, draft=draft)
    return tmp_path / "pair.npz"


def test_generate_prints_one_json_object(capsys):
    assert main([*GENERATE, "--json", "--compare", "--top-k", "50"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["num_tokens"] == 12 and isinstance(described["text"], str)
    metrics = described["metrics"]
    assert 1 <= metrics["mean_acceptance_length"] <= 3
    assert 0 <= metrics["acceptance_rate"] <= 1
    assert 0 < metrics["optimal_acceptance_rate"] <= 1
    assert metrics["num_accepted_draft_tokens"] + metrics["num_spec_steps"] >= 12
    assert metrics["tokens_per_second"] > 0
    plain = described["plain"]
    assert plain["metrics"]["mean_acceptance_length"] == 1


def test_generate_shows_text_and_metrics(capsys):
    options = ["--temp", "0", "--num-drafts", "1", "--compare"]
    assert main([*GENERATE, *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ROMEO:")
    for label in ("mean acceptance length", "optimal acceptance rate", "per second"):
        assert label in out
    # At temperature 0 both ways write the same text, shown twice.
    first, second = out.split("mean acceptance length")[0].strip(), out.split(":\n")[-1]
    assert second.strip() in first


@pytest.mark.parametrize("draft", ["layers:0", "prompt-lookup"])
def test_drafts_without_a_second_model(draft, capsys):
    options = ["--draft", draft, "--json", "--verbose"]
    count = ["--num-drafts", "1"] if draft.startswith("layers") else []
    assert main([*GENERATE, *options, *count, "--temp", "0", "--compare"]) == 0
    captured = capsys.readouterr()
    described = json.loads(captured.out)
    assert described["text"] == described["plain"]["text"]
    assert captured.err.startswith("loaded in ")


def test_a_chat_template_is_used_unless_refused():
    tokenizer = dataclasses.replace(
        load("embedded").tokenizer,
        chat_template="{% for m in messages %}[{{m.role}}]{{m.content}}{% endfor %}",
    )
    model = dataclasses.replace(load("embedded"), tokenizer=tokenizer)

    def prompt(*options):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        args = parser.parse_args(["--prompt", "Hi", *options])
        return tokenizer.decode(_prompt_tokens(args, model))

    assert prompt() == "[user]Hi"
    assert prompt("--system", "Rhyme") == "[system]Rhyme[user]Hi"
    assert prompt("--no-chat-template") == "Hi"
    with pytest.raises(ValueError, match="--system: needs a model with a chat"):
        prompt("--no-chat-template", "--system", "Rhyme")


def test_same_seed_same_text(capsys):
    texts = []
    for seed in ("1", "1", "2"):
        main([*GENERATE[:-1], seed, "--json", "--num-drafts", "2", "--top-p", "0.9"])
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_pieces_join_to_the_text():
    tokenizer = load("embedded").tokenizer
    tokens = tokenizer.encode("naïve Romeo, 東京!\n")
    assert "".join(_pieces(tokenizer, np.array(tokens))) == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "--prompt: empty"),
        (["--prompt", "a", "--num-drafts", "0"], "num_drafts: must be at least 1"),
        (["--prompt", "a", "--temp", "-1"], "temperature: must be 0 or more"),
        (["--prompt", "a", "--top-p", "2"], "top_p: must lie in"),
        (["--prompt", "a", "--target", "no/such"], "source: 'no/such' is no folder"),
        (["--prompt", "a", "--max-tokens", "0"], "max_new_tokens: must be at least 1"),
        (
            ["--prompt", "a", "--verifier", "single-draft", "--num-drafts", "3"],
            "SingleDraft verifies 1 draft, got 3",
        ),
    ],
)
def test_generate_refuses_in_words(options, message, capsys):
    assert main(["generate", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_unknown_verifier_lists_the_names(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*GENERATE, "--verifier", "best"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    for name in ("global-resolution", "recursive-rejection", "single-draft"):
        assert name in error


def test_acceptance_table_and_json(logits_file, capsys):
    assert main(["acceptance", str(logits_file), "--num-drafts", "3", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    optimum = described["optimum"]
    rates = {k: v["acceptance_rate"] for k, v in described["rules"].items()}
    assert set(rates) == set(gr.verifiers.BY_NAME) - {"greedy-draft", "spec-hub"}
    assert rates["global-resolution"] == pytest.approx(optimum, abs=2e-5)
    assert rates["single-draft"] < rates["recursive-rejection"] < optimum


def test_acceptance_of_another_law(logits_file, capsys):
    options = ["--law", "top-plus-sample", "--num-drafts", "2", "--json"]
    assert main(["acceptance", str(logits_file), *options]) == 0
    described = json.loads(capsys.readouterr().out)
    rates = {k: v["acceptance_rate"] for k, v in described["rules"].items()}
    for name in ("spec-hub", "greedy-draft", "global-resolution"):
        assert rates[name] == pytest.approx(described["optimum"], abs=2e-5)
    assert rates["target-sample"] < described["optimum"]
    assert "recursive-rejection" not in rates
    assert main(["acceptance", str(logits_file), *options[:-1]]) == 0
    out = capsys.readouterr().out
    for name in (*rates, "optimum"):
        assert name in out


def test_the_best_law_at_each_position_is_at_least_each_law(logits_file):
    logits = [np.asarray(x, np.float32) for x in load_logits(logits_file)]
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits)
    optima, best = mean_optima(jnp.asarray(p), jnp.asarray(q), 3, list(LAWS))
    assert set(optima) == {"iid", "without-replacement", "top-plus-sample"}
    assert max(optima.values()) <= best <= 1


def test_acceptance_of_bfloat16_logits(tmp_path, capsys):
    import ml_dtypes

    logits = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "half.npz", target=logits[0], draft=logits[1])
    assert main(["acceptance", str(tmp_path / "half.npz"), "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["optimum"] <= 1


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
