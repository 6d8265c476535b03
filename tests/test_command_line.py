"""`python -m globalres_jax` as a stranger would use it."""

import argparse
import contextlib
import dataclasses
import json

import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.__main__ import main
from globalres_jax.commands import generate as command
from globalres_jax.commands.generate import _prompt_tokens, add_arguments
from globalres_jax.commands.loading import load_measured
from globalres_jax.models import load


@pytest.fixture
def decoding_compiled_once(monkeypatch):
    """For options that change no program: `generate` in place of a program a call."""

    def compile_once(*args, **kwargs):
        return lambda: gr.generate(*args, **kwargs)

    def stream_once(*args, **kwargs):
        return lambda: gr.stream(*args, **kwargs)

    monkeypatch.setattr(command, "compile_generate", compile_once)
    monkeypatch.setattr(command, "compile_stream", stream_once)


GENERATE = ["generate", "--prompt", "ROMEO:", "--draft-length", "2"]
GENERATE += ["--max-tokens", "12", "--seed", "3"]
#: The pair as it is by default: the README's text comes from the same program.
WHOLE = ["generate", "--prompt", "ROMEO:", "--top-p", "0.95"]
#: Where the rule does not matter, one that compiles fast.
CHEAP = ["--verifier", "single-draft"]
#: And where the model does not matter, one of a single layer, which drafts for itself.
SMALL = ["--target", "embedded-draft", "--draft", "layers:0", *CHEAP]


def test_generate_prints_one_json_object(capsys):
    assert main([*WHOLE, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["num_tokens"] == 64 and isinstance(described["text"], str)
    assert described["finish_reason"] == "length"
    metrics = described["metrics"]
    assert 1 <= metrics["mean_acceptance_length"] <= 6
    assert 0 <= metrics["acceptance_rate"] <= 1
    assert metrics["optimal_acceptance_rate"] is None  # not measured
    assert metrics["num_accepted_draft_tokens"] + metrics["num_spec_steps"] >= 64
    assert metrics["tokens_per_second"] > 0
    # The steps accept about what the rule expected of them.
    accepted, steps = described["accepted_lengths"], metrics["num_spec_steps"]
    assert len(accepted) == steps and sum(accepted) + steps in (64, 65)
    error = np.std(accepted) / np.sqrt(steps)
    assert 1 < metrics["expected_acceptance_length"] < 6
    surplus = metrics["mean_acceptance_length"] - metrics["expected_acceptance_length"]
    assert abs(surplus) <= 5 * error


def test_generate_shows_text_and_metrics(capsys, decoding_compiled_once):
    options = ["--temp", "0", *SMALL, "--compare"]
    assert main([*GENERATE, *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ROMEO:")
    for label in ("mean acceptance length", "acceptance rate", "per second"):
        assert label in out
    assert "optimal" not in out  # not measured
    # What is streamed is what JSON has.
    assert main([*GENERATE, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] in out
    # At temperature 0 both ways write the same text, shown twice.
    first, second = out.split("mean acceptance length")[0].strip(), out.split(":\n")[-1]
    assert second.strip() in first


def test_ctrl_c_ends_a_text_and_says_how_it_went(
    capsys, monkeypatch, decoding_compiled_once
):
    looks = []

    @contextlib.contextmanager
    def asked_after_two_steps():
        yield lambda: looks.append(capsys.readouterr().out) or len(looks) >= 2

    monkeypatch.setattr(command, "postponed", asked_after_two_steps)
    options = ["--temp", "0", *SMALL]
    assert main([*GENERATE, *options]) == 130
    captured = capsys.readouterr()
    assert captured.err == "interrupted\n"
    assert "mean acceptance length" in captured.out and "plain" not in captured.out
    first, second = looks[0], looks[1]
    assert first.startswith("ROMEO:") and second and len(looks) == 3
    assert main([*GENERATE, *options, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    written = first.removeprefix("ROMEO:") + second
    assert text.startswith(written) and text != written


@pytest.mark.parametrize("draft", ["layers:0", "prompt-lookup"])
def test_drafts_without_a_second_model(draft, capsys, decoding_compiled_once):
    options = [*SMALL, "--draft", draft, "--json", "--verbose"]
    assert main([*GENERATE, *options, "--temp", "0", "--compare"]) == 0
    captured = capsys.readouterr()
    described = json.loads(captured.out)
    assert described["text"] == described["plain"]["text"]
    assert described["plain"]["metrics"]["mean_acceptance_length"] == 1
    assert captured.err.startswith("loaded in ")


def test_options_of_the_text(capsys, decoding_compiled_once):
    """Streamed, or as JSON: by one program, whatever the strings that end it."""
    newline = load("embedded").tokenizer.encode("\n")[0]  # what is said without this
    options = ["--temp", "0", *SMALL, "--draft-length", "0"]
    options += ["--logit-bias", f"{newline}=-inf", "--repetition-penalty", "1.3"]
    options += ["--frequency-penalty", "0.2", "--min-tokens", "2"]
    assert main([*GENERATE, *options, "--json", "--stop", "zzz"]) == 0
    free = json.loads(capsys.readouterr().out)
    text = free["text"]
    assert not text.startswith("\n") and free["num_tokens"] == 12
    stop = next(text[i : i + 2] for i in range(9, 20) if text.find(text[i : i + 2]) > 8)
    cut = text[: text.find(stop)]
    assert main([*GENERATE, *options, "--json", "--stop", stop, "--stop", "zzz"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == cut and found["finish_reason"] == "stop"
    assert 2 < found["num_tokens"] < 12
    assert main([*GENERATE, *options, "--stop", stop, "--include-stop"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ROMEO:{cut}{stop}\n")


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


def test_same_seed_same_text(capsys, decoding_compiled_once):
    texts = []
    for seed in ("1", "1", "2"):
        main([*GENERATE[:-1], seed, "--json", *SMALL])
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_pieces_join_to_the_text():
    tokenizer = load("embedded").tokenizer
    tokens = tokenizer.encode("naïve Romeo, 東京!\n")
    pieces = tokenizer.decode_pieces([], np.array(tokens))
    assert "".join(pieces) == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "--prompt: empty"),
        (["--prompt", "a", "--num-drafts", "0"], "num_drafts: must be at least 1"),
        (["--prompt", "a", "--temp", "-1"], "temperature: must be 0 or more"),
        (["--prompt", "a", "--top-p", "2"], "top_p: must lie in"),
        (["--prompt", "a", "--target", "no/such"], "source: 'no/such' is no folder"),
        (["--prompt", "a", "--min-tokens", "65"], "min_new_tokens: 65 are more than"),
        (["--prompt", "a", "--repetition-penalty", "0"], "repetition_penalty: must be"),
        (["--prompt", "a", "--presence-penalty", "nan"], "presence_penalty: must be"),
        (["--prompt", "a", "--logit-bias", "x"], "--logit-bias: expected ID=VALUE"),
        (["--prompt", "a", "--logit-bias=-1=2"], "logit_bias: must be 0 or more"),
        (["--prompt", "a", "--logit-bias", "1024=2"], "logit_bias: token 1024 is"),
        (["--prompt", "a", "--stop", ""], "stop: an empty string"),
        (["--prompt", "a", "--include-stop"], "--include-stop: needs --stop"),
        (["--prompt", "a", "--log-probabilities"], "--log-probabilities: are in"),
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


def test_a_text_beyond_the_context_is_refused_in_numbers(monkeypatch, capsys):
    from globalres_jax.commands import generate as command

    def load_short(*args):
        target, draft, loading = load_measured(*args)
        return dataclasses.replace(target, context_length=20), draft, loading

    monkeypatch.setattr(command, "load_measured", load_short)
    assert main(["generate", "--prompt", "ROMEO:", "--max-tokens", "30"]) == 2
    error = capsys.readouterr().err
    assert "tokens and 30 new ones are more than the target's context of 20" in error
    assert main(["generate", "--prompt", "ROMEO: " * 20]) == 2
    error = capsys.readouterr().err
    assert "tokens is longer than the target's context of 20" in error


def test_trees_by_name(monkeypatch, tmp_path, capsys, decoding_compiled_once):
    """Explicit ones as they are; auto as its plan says, which is told, and kept."""

    def settle(*options):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        args = parser.parse_args(["--prompt", "a", *options])
        return command._config(args, "embedded-draft")

    assert settle("--tree", "paths:3,5").token_tree == gr.paths(3, 5)
    assert settle("--tree", "plain").token_tree.depth == 0
    chain = settle("--tree", "chain:7", "--verifier", "block")
    assert chain.verifier == gr.tree_verifiers.Block()
    assert settle("--tree", "auto") == gr.SpeculativeConfig(tree="auto")
    assert settle("--tree", "auto", *CHEAP).verifier == gr.verifiers.SingleDraft()
    with pytest.raises(ValueError, match="expected auto, plain, chain:LENGTH or"):
        settle("--tree", "wide")

    def planned(target, draft, prompts, lengths, config, max_new_tokens):
        # The program of other tests.
        chosen = dataclasses.replace(config, tree=None, num_drafts=1, draft_length=2)
        known = gr.planning.Estimates(
            gr.planning.independent(0.5),
            gr.planning.Costs({1: 1.0}, {1: 0.1}, {1: 0.1}),
            3,
            99,
        )
        name = "pair"
        gr.planning.automatic._remember(name, known)
        return gr.planning.Plan(chosen, gr.planning.Shape(1, 2), known, name, 0.5)

    monkeypatch.setattr(command, "plan", planned)
    options = ["--tree", "auto", "--plans", str(tmp_path), "--verbose", "--json"]
    try:
        assert main([*GENERATE, *SMALL, *options]) == 0
    finally:
        gr.planning.forget()
    captured = capsys.readouterr()
    assert "tree: chain:2 by SingleDraft, " in captured.err
    # What was decoded has been learned from.
    counts = json.loads(captured.out)["metrics"]
    kept = json.loads((tmp_path / "pair.json").read_text())
    assert kept["acceptance"]["steps"] == counts["num_spec_steps"] > 0


def test_unknown_verifier_lists_the_names(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*GENERATE, "--verifier", "best"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    for name in ("global-resolution", "recursive-rejection", "single-draft"):
        assert name in error


def test_the_command_decodes_once(monkeypatch, capsys):
    """What is timed is what is shown."""
    runs, compile_generate = [], command.compile_generate

    def counted(*args, **kwargs):
        decode = compile_generate(*args, **kwargs)
        return lambda: runs.append(decode()) or runs[-1]

    monkeypatch.setattr(command, "compile_generate", counted)
    assert main([*GENERATE, *SMALL, "--temp", "0", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert len(runs) == 1 and described["num_tokens"] == int(runs[0].lengths[0])
