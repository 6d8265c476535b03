"""`generate --prompts`: every line is answered once, whatever came in between."""

import contextlib
import importlib.util
import json
import re

import pytest
from summing import LETTERS, summing_model

import globalres_jax as gr
from globalres_jax.__main__ import main
from globalres_jax.commands import many, plotting

PAIR = summing_model(0, LETTERS), summing_model(1)
LINES = [
    {"prompt": "abc", "id": "first"},
    {"turns": ["hgf", "a"], "question_id": 81, "category": "writing", "seed": 7},
    {"prompt": "dead", "temperature": 0.5, "max_tokens": 3},
    {"prompt": "a" * 60, "id": "long", "max_tokens": 30},
    {"prompt": "beef", "max_tokens": 1},
]
FIXED = ["--draft-length", "2", "--verifier", "single-draft", "--max-tokens", "9"]
FIXED += ["--batch", "2", "--no-compilation-cache"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(many, "load_measured", lambda *_: (*PAIR, "loaded"))
    write(tmp_path / "prompts.jsonl", LINES)
    return tmp_path


def write(path, lines):
    said = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(said) + "\n", "utf-8")


def run(folder, *options, out="out.jsonl"):
    files = ["--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / out)]
    return main(["generate", *files, "--cache-length", "64", *FIXED, *options])


def answers(folder, out="out.jsonl"):
    lines = (folder / out).read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    by_place = {(answer["line"], answer["sample"]): answer for answer in found}
    assert len(by_place) == len(found)
    return by_place


def test_a_file_is_answered_once_and_a_run_cut_off_is_taken_up(
    folder, capsys, monkeypatch
):
    assert run(folder, "--json", "--samples", "2", "--verbose") == 0
    captured = capsys.readouterr()
    summary, whole = json.loads(captured.out), answers(folder)
    assert whole.keys() == {(line, k) for line in range(1, 6) for k in (0, 1)}
    told = [whole[place].get("id") for place in [(1, 0), (1, 1), (2, 0), (3, 0)]]
    assert told == ["first", "first", 81, None]
    assert whole[1, 0]["text"] != whole[1, 1]["text"] and len(whole[1, 0]["text"]) == 9
    assert whole[5, 0]["num_tokens"] == 1 and whole[3, 1]["finish_reason"] == "length"
    assert whole[4, 0]["finish_reason"] == "error"
    assert whole[4, 0]["error"].startswith("cache_length: 60 prompt tokens, 30 new")
    for name in ("answered", "refused", "answered_before"):
        expected = {"answered": 8, "refused": 2, "answered_before": 0}[name]
        assert summary[name] == expected
    told = [x["metrics"]["num_spec_steps"] for x in whole.values() if "metrics" in x]
    assert summary["metrics"]["num_spec_steps"] == sum(told)
    assert "line 3, sample 1: length, 3 tokens, " in captured.err
    assert "line 4, sample 0: cache_length: 60" in captured.err

    # The same texts as one prompt alone has.
    tokens = LETTERS.encode("abc")
    request = gr.GenerationRequest(prompt=tokens, max_new_tokens=9)
    config = gr.SpeculativeConfig(
        num_drafts=1,
        draft_length=2,
        verifier=gr.verifiers.SingleDraft(),
        cache_length=64,
    )
    (one,) = gr.generate_many(*PAIR, [request], config=config, batch=2)
    assert one.text == whole[1, 0]["text"]

    # Killed after some answers, in the middle of a line.
    said = (folder / "out.jsonl").read_bytes().splitlines(keepends=True)
    for kept, rest in ((4, said[4][:30]), (3, b"{"), (0, said[0][:-1])):
        (folder / "out.jsonl").write_bytes(b"".join(said[:kept]) + rest)
        assert run(folder, "--samples", "2") == 0
        assert answers(folder) == whole
        out = capsys.readouterr().out
        assert kept == 0 or f"{kept} had been answered before" in out
    # Ctrl-C ends it after the text at hand, with the metrics so far.
    (folder / "out.jsonl").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(many, "postponed", lambda: contextlib.nullcontext(lambda: True))
        assert run(folder, "--samples", "2") == 130
    assert len(answers(folder)) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(("1 answered", "0 answered, 1 refused"))
    assert captured.err == "interrupted\n"
    assert run(folder, "--samples", "2") == 0 and answers(folder) == whole
    capsys.readouterr()
    # Another run has nothing to do, and loads nothing.
    monkeypatch.setattr(many, "load_measured", None)
    assert run(folder, "--samples", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["answered_before"] == 10


def test_broken_lines_are_named_or_left_out(folder, capsys):
    broken = ['{"prompt": "a', '{"prompt": "a", "prompt": "b"}', "\udcff", "[" * 9999]
    other = [{"prompt": "xyz"}, {"prompt": "a", "top_p": 2}]
    with (folder / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n\n")
    path = folder / "prompts.jsonl"
    text = [*map(json.dumps, LINES[:1]), "", *broken, *map(json.dumps, other)]
    path.write_bytes("\n".join(text).encode("utf-8", "surrogateescape"))
    assert run(folder) == 2
    said = capsys.readouterr().err
    assert re.search(r"error: --prompts: .*, line 3: no JSON: .* \(--keep-going", said)
    assert not (folder / "out.jsonl").exists()
    assert run(folder, "--keep-going", "--json") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["broken_lines"] == [3, 4, 5, 6, 8, 7] and summary["answered"] == 1
    assert "line 4: 'prompt' is given twice" in captured.err
    assert "line 7: text: 'xyz' has other letters" in captured.err
    assert answers(folder).keys() == {(1, 0)}
    write(path, broken[:1])
    assert run(folder, "--keep-going", out="none.jsonl") == 2
    assert "has no prompts" in capsys.readouterr().err


def test_answers_of_another_run_are_not_taken_for_these(folder, capsys):
    mark = {"line": 1, "sample": 0, "text": "", "fingerprint": "0" * 16}
    for lines, message in (
        ([mark], "is from another run: what it says of line 1 was written for another"),
        (
            [mark | {"line": 99}],
            "from another run: it answers line 99, sample 0, for w",
        ),
        (["hello"], "exists, and line 1 of it is no answer of this command's"),
        ([json.dumps(mark), "[]"], "exists, and line 2 of it is no answer"),
    ):
        write(folder / "out.jsonl", lines)
        before = (folder / "out.jsonl").read_bytes()
        assert run(folder) == 2
        assert message in capsys.readouterr().err
        assert (folder / "out.jsonl").read_bytes() == before
    (folder / "out.jsonl").write_bytes(b"a letter to my aunt")
    assert run(folder) == 2
    assert "the last line of it is no answer" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_bytes() == b"a letter to my aunt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--prompt, --prompts: give one of them"),
        (["--prompt", "a", "--prompts", "p"], "--prompt, --prompts: give one of them"),
        (["--prompts", "p"], "--out: --prompts needs a file for the answers"),
        (["--prompt", "a", "--out", "o"], "--out: needs --prompts"),
        (["--prompt", "a", "--samples", "2"], "--samples: needs --prompts"),
        (["--prompt", "a", "--keep-going"], "--keep-going: needs --prompts"),
        (["--prompts", "p", "--out", "o", "--compare"], "--compare: is for one"),
        (["--prompts", "p", "--out", "o", "--batch", "0"], "--batch: must be at least"),
        (["--prompts", "p", "--out", "o", "--samples", "0"], "--samples: must be at l"),
        (["--prompts", "p", "--out", "o", "--cache-length", "0"], "--cache-length: mu"),
        (["--prompts", __file__, "--out", __file__], "--out: is the file of the prom"),
        (["--prompts", "/none.jsonl", "--out", "o"], "[Errno 2] No such file or direc"),
        (["--prompt", "a", "--plot", "x.doc"], "--plot: x.doc is none of .png, .pdf"),
        (["--prompt", "a", "--plot", "/no/x.png"], "--plot: /no is no folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused_first(
    options, message, capsys, monkeypatch
):
    monkeypatch.setattr(many, "load_measured", None)
    assert main(["generate", *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_plot_needs_matplotlib_and_is_a_picture(folder, capsys, monkeypatch):
    write(folder / "prompts.jsonl", LINES[:3])
    picture = folder / "lengths.png"
    if importlib.util.find_spec("matplotlib"):
        assert run(folder, "--plot", str(picture)) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "tokens per target call" in capsys.readouterr().out
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None)
    assert run(folder, "--plot", str(picture)) == 2
    assert "--plot: needs matplotlib, which is not installed" in capsys.readouterr().err
