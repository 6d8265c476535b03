"""How commands end: bad numbers, Ctrl-C, closed pipes; and text as it is."""

import ast
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from loaded import DATA

import globalres_jax as gr
from globalres_jax import interruption
from globalres_jax.__main__ import COMMANDS, main
from globalres_jax.commands import acceptance, generate
from globalres_jax.commands.acceptance import load_logits
from globalres_jax.commands.outcome import exit_status
from globalres_jax.commands.seeds import key_of_seed
from globalres_jax.decoding.metrics import empty_metrics
from globalres_jax.models import Tokenizer
from globalres_jax.models.pairs import parse_layers

LLAMA = json.loads((DATA / "tokenizers.json").read_text("utf-8"))["bases"]["prepend"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--seed", str(2**64)],
            "--seed: must lie in [-2^63, 2^64), got a number of 65",
        ),
        (["--seed", "-" + "9" * 100], "--seed: must lie in"),
        (["--max-tokens", str(10**12)], "max_new_tokens: must be at most 16777216"),
        (
            ["--num-drafts", str(10**9)],
            "num_drafts, draft_length: a tree of 5000000001",
        ),
        (["--draft-length", str(10**8)], "num_drafts, draft_length: a tree of "),
        (["--draft-top-k", "0"], "draft_top_k: must be at least 1"),
        (["--temp", "nan"], "temperature: must be 0 or more, got nan"),
        (["--min-p", "7"], "min_p: must lie in [0, 1], got 7"),
    ],
)
def test_numbers_beyond_measure_are_refused_before_anything_is_loaded(
    options, message, capsys, monkeypatch
):
    monkeypatch.setattr(generate, "load_measured", None)
    assert main(["generate", "--prompt", "A", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and captured.out == ""
    assert captured.err.count("\n") == 1


def test_layers_beyond_measure_and_text_that_is_none(capsys):
    with pytest.raises(ValueError, match="names a layer that no model has"):
        parse_layers("layers:0-999999999")
    assert main(["generate", "--prompt", "a\udcff"]) == 2
    assert capsys.readouterr().err.startswith(r"error: text: '\udcff' at 1 is half of")


def test_seeds_of_64_bits_have_keys_of_their_own():
    seeds = [
        0,
        5,
        -1,
        2**31,
        2**32 - 1,
        2**32 + 5,
        2**40,
        2**63,
        2**64 - 7,
        -(2**63) + 1,
    ]
    keys = [key_of_seed(seed) for seed in seeds]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(seeds)
    for seed in (0, 5, 2**31 - 1):  # as ever
        assert bool(key_of_seed(seed) == jax.random.key(seed))


class Fixed:
    """A command that is what a test makes it."""

    SUMMARY = "fixed"

    def __init__(self, run):
        self.run = run

    def add_arguments(self, parser):
        pass


@pytest.fixture
def command(monkeypatch):
    def install(run):
        monkeypatch.setitem(COMMANDS, "fixed", Fixed(run))
        return lambda: main(["fixed", "--no-compilation-cache"])

    return install


def test_ctrl_c_is_one_line_and_130(command, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    assert command(interrupted)() == 130
    captured = capsys.readouterr()
    assert captured.err == "interrupted\n" and captured.out == ""


#: What a shell starts behind itself does not hear of Ctrl-C, nor do its own processes.
_HEAR = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def test_ctrl_c_ends_a_process_that_no_python_handler_would():
    """While JAX is imported, or compiles: here in a wait inside one call."""
    program = (
        f"{_HEAR}import runpy, sys, os, threading\n"
        "sys.argv = ['/usr/bin/globalres-jax']\n"
        f"watch = runpy.run_path({str(interruption.__file__)!r})\n"
        "assert watch['is_command']()\n"
        "watch['watch']()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Lock().acquire() and threading.Event().wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("watched", [True, False])
def test_ctrl_c_can_be_left_to_who_is_writing_once(watched):
    program = (
        f"{_HEAR}import runpy, os, time\n"
        f"watch = runpy.run_path({str(interruption.__file__)!r})\n"
        f"{watched} and watch['watch']()\n"
        "with watch['postponed']() as asked:\n"
        "    assert not asked()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while not asked(): time.sleep(0.01)\n"
        "    print('written', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(100)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.stdout == "written\n"
    if watched:
        assert (done.returncode, done.stderr) == (130, "interrupted\n")
    else:
        assert done.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize(
    ("argv", "words", "is_command"),
    [
        (["-m"], ["python", "-m", "globalres_jax", "generate"], True),
        (["-m"], ["python", "-OO", "-m", "globalres_jax.models.train"], True),
        (["/usr/bin/globalres-jax"], ["python", "globalres-jax"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["script.py"], ["python", "script.py", "globalres_jax"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_signals_are_touched_in_commands_alone(argv, words, is_command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", words)
    assert interruption.is_command() == is_command


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_is_silent(command, capsys, monkeypatch, lines):
    """Met while printing, or when all is flushed at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert command(lambda args: [print("x") for _ in range(lines)])() == 141
    assert capsys.readouterr().err == ""


def test_no_output_at_all_is_no_error(command, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert command(lambda args: print("x"))() == 0


def test_memory_that_is_not_there_is_said(command, capsys):
    def hungry(args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory, 9 TB\nat")

    assert command(hungry)() == 2
    said = (
        "error: there is not enough memory: RESOURCE_EXHAUSTED: Out of memory, 9 TB\n"
    )
    assert capsys.readouterr().err == said

    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: bug")

    with pytest.raises(jax.errors.JaxRuntimeError):
        exit_status(broken)


@pytest.fixture
def shown(monkeypatch, capsys):
    """What `generate` prints of a text given as tokens, by a tokenizer like Llama's."""
    tokenizer = Tokenizer(json.dumps(LLAMA))
    model = gr.testing.markov_model(np.eye(2, dtype=np.float32))
    target = dataclasses.replace(model, tokenizer=tokenizer, vocab_size=400)

    def show(prompt, text, *options, failed=False):
        before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
        assert whole[: len(before)] == before
        new = np.array([whole[len(before) :]])
        result = gr.Generation(
            new,
            np.array([new.shape[1]]),
            new > 0,
            empty_metrics(1, 1),
            np.array([failed]),
            np.array([False]),
        )
        loaded = (target, None, "")
        monkeypatch.setattr(generate, "load_measured", lambda *_: loaded)
        monkeypatch.setattr(
            generate, "compile_generate", lambda *_, **__: lambda: result
        )
        chunk = gr.Chunk([new[0]], [new[0] > 0], np.array([False]), result)
        monkeypatch.setattr(
            generate, "compile_stream", lambda *_, **__: lambda: iter([chunk])
        )
        assert main(["generate", "--prompt", prompt, *options]) == 0
        return capsys.readouterr()

    return show


def test_text_is_printed_as_it_is(shown):
    text = " :smile: [red]the[/red]\tdog\x0b\\[b]\n the"
    prompt = "Once [bold]:cat:\tupon"
    out = shown(prompt, text, "--compare").out
    assert out.startswith(f"{prompt}{text}\n\n")
    assert out.endswith(f"plain decoding wrote:\n{prompt}{text}\n")


def test_a_continuation_keeps_its_space_in_json_and_in_print(shown):
    described = json.loads(shown("Once upon", " the dog", "--json", "--compare").out)
    assert described["text"] == described["plain"]["text"] == " the dog"
    assert shown("Once upon", " the dog").out.startswith("Once upon the dog\n")


def test_colours_are_for_terminals(shown, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    shown("Once upon", " :smile:")
    printed = terminal.getvalue()
    assert "\x1b[32m" in printed and printed.startswith("\x1b[1mOnce upon\x1b[0m")


def test_a_text_that_broke_off_says_so(shown):
    captured = shown("Once", " the", "--json", failed=True)
    assert json.loads(captured.out)["failed"] is True
    assert "speculative: after 1 tokens the target's logits were no numbers" in (
        captured.err
    )


def test_logits_that_are_infinite_are_numbers_or_refused(tmp_path, capsys, monkeypatch):
    file = tmp_path / "pair.npz"

    def save(target, draft):
        np.savez(file, target=np.array(target), draft=np.array(draft))

    monkeypatch.setattr(acceptance, "compare_laws", measured := Measured())
    inf = np.inf
    save([[0.0, inf, 5.0], [1e300, 2e300, -inf]], [[inf, inf, 0.0], [1.0, 2.0, 3.0]])
    assert main(["acceptance", str(file), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(measured.p, [[0, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(measured.q[0], [0.5, 0.5, 0])
    np.testing.assert_array_equal(load_logits(file)[1][1], [1, 2, 3])
    save([[0.0, 1.0], [-inf, -inf]], [[0.0, 1.0]] * 2)
    assert main(["acceptance", str(file)]) == 2
    assert "target: row 1 is -inf throughout" in capsys.readouterr().err
    assert main(["acceptance", str(file), "--num-drafts", str(10**9)]) == 2
    assert "--num-drafts: must be at most 4096, got" in capsys.readouterr().err


class Measured:
    """In place of what would be measured."""

    def __call__(self, p, q, *_):
        self.p, self.q = p, q
        return {"iid": {"optimum": 1.0, "rules": {}, "not_measured": {}}}, 1.0


#: `generate --help` without the module that Windows lacks; what is optimised away from
#: this package's modules, its docstrings above all, is so without reading JAX again.
WITHOUT = """
import importlib.machinery, runpy, sys
sys.modules["resource"] = None
loader = importlib.machinery.SourceFileLoader
as_usual = loader.get_code

def get_code(self, name):
    if not name.startswith("globalres_jax") or sys.flags.optimize:
        return as_usual(self, name)
    return compile(self.get_data(self.path), self.path, "exec", optimize=2)

loader.get_code = get_code
sys.argv = ["globalres_jax", "generate", "--help"]
try:
    runpy.run_module("globalres_jax", run_name="__main__")
finally:
    assert sys.modules["globalres_jax"].__doc__ is None
"""


@pytest.mark.parametrize(
    "options", [(), pytest.param(("-OO",), marks=pytest.mark.sweep)]
)
def test_without_docstrings_resource_and_unicode(options):
    """Python -OO, as on Windows, into a pipe that knows Latin letters alone."""
    done = subprocess.run(
        [sys.executable, *options, "-c", WITHOUT],
        capture_output=True,
        text=True,
        encoding="cp1252",
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert generate.SUMMARY.split(",")[0] in done.stdout


def test_text_files_are_read_and_written_in_utf_8():
    """What a system's own encoding is differs from system to system."""
    root, calls = Path(gr.__file__).parents[1], 0
    for folder in ("globalres_jax", "models", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
                if names_text(call):
                    calls += 1
                    assert says_utf_8(call), f"{path}:{call.lineno}"
    assert calls >= 5


def names_text(call):
    """Whether a call opens, reads or writes a file as text."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("read_text", "write_text"):
        return True
    binary = any(
        isinstance(word, ast.Constant) and "b" in str(word.value)
        for word in [*call.args, *(keyword.value for keyword in call.keywords)]
    )
    of_os = getattr(getattr(call.func, "value", None), "id", "") == "os"
    return name in ("open", "fdopen") and not binary and not of_os


def says_utf_8(call):
    words = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(getattr(word, "value", "") == "utf-8" for word in words)
