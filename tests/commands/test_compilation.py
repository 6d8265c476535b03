"""Compiled programs are kept for the next command, or silently not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from globalres_jax.__main__ import main
from globalres_jax.commands import compilation
from globalres_jax.commands.compilation import VARIABLE, cache_folder, kept_programs

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def configuration():
    return {name: getattr(jax.config, name) for name in OPTIONS}


@pytest.fixture
def jax_without_cache(monkeypatch):
    """As a user has it who has never heard of the cache."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(compilation, "LEAST_SECONDS", 0)
    before = configuration()
    with compilation._configured({"jax_compilation_cache_dir": None}):
        yield
    assert configuration() == before


@pytest.fixture
def hits():
    """A list that grows by one whenever a program comes from the folder."""
    seen = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            seen.append(event)

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)


def compute():
    """Compiles a program that nobody else has, as a new process would."""
    found = jax.jit(lambda x: jnp.cos(x) * 7.125 - 3)(jnp.arange(3.0))
    assert found.shape == (3,)


def entries(folder):
    return sorted(folder.glob("*-cache"))


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "~/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "~/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "/Users/me/Local"}, "/Users/me/Local"),
        ("win32", {}, "~/AppData/Local"),
    ],
)
def test_the_folder_is_the_users(platform, variables, folder):
    found = cache_folder(variables, platform)
    assert found == Path(folder).expanduser() / "globalres_jax" / "xla"


@pytest.mark.usefixtures("jax_without_cache")
def test_programs_are_kept_and_found_and_the_configuration_restored(
    tmp_path, monkeypatch, hits
):
    folder = tmp_path / "globalres_jax" / "xla"
    monkeypatch.setattr(compilation, "cache_folder", lambda: folder)
    for times in range(2):
        with kept_programs() as said:
            assert said == f"compiled programs are kept in {folder}"
            compute()
        assert bool(hits) == bool(times) and entries(folder)
        assert jax.config.jax_compilation_cache_dir is None
    assert folder.stat().st_mode & 0o077 == 0  # what is run from there is the user's


@pytest.mark.usefixtures("jax_without_cache")
def test_the_folder_may_be_another_or_none(tmp_path, monkeypatch, hits):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    with kept_programs():
        compute()
    kept = entries(tmp_path / "mine")
    assert kept
    with kept_programs(refused=True) as said:
        assert said is None
        compute()
    monkeypatch.setenv(VARIABLE, "0")
    with kept_programs() as said:
        assert said is None and not jax.config.jax_enable_compilation_cache
        compute()
    assert entries(tmp_path / "mine") == kept and not hits


def test_a_cache_that_was_given_to_jax_stays(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    before = configuration()
    given = {"jax_compilation_cache_dir": str(tmp_path / "given")}
    with compilation._configured(given), kept_programs() as said:
        assert said is None
        assert configuration() == before | given


@pytest.mark.usefixtures("jax_without_cache")
def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "below"))
    with kept_programs() as said:
        assert said.startswith("compiled programs are not kept: ")
        assert "\n" not in said
        compute()

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(compilation, "cache_folder", homeless)
    with kept_programs() as said:
        assert said.endswith("not kept: Could not determine home directory.")
        compute()


def test_commands_take_the_option_and_say_what_came_of_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    refused = "error: --prompt: empty; give at least one character\n"
    for options, said in (
        (["--verbose"], f"compiled programs are kept in {tmp_path}\n"),
        ([], ""),
        (["--verbose", "--no-compilation-cache"], ""),
    ):
        before = configuration()
        assert main(["generate", "--prompt", "", *options]) == 2
        assert capsys.readouterr().err == said + refused
        assert configuration() == before


@pytest.mark.usefixtures("jax_without_cache")
def test_entries_that_break_are_no_error(tmp_path, monkeypatch, hits):
    """Warnings are errors here; and there are none."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(VARIABLE, str(folder))
    with kept_programs():
        compute()
    for entry in entries(folder):
        entry.write_bytes(entry.read_bytes()[:20])
    with kept_programs():
        compute()
    assert not hits
    with kept_programs():
        # As a disk that is full, or gone: nothing can be written after all.
        shutil.rmtree(folder)
        folder.write_text("")
        compute()


#: Counts what comes from the cache; the last line is the count.
SCRIPT = """
import sys, jax
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
from globalres_jax.__main__ import main
from globalres_jax.commands import compilation
compilation.LEAST_SECONDS = 0  # a program this small compiles fast
status = main(sys.argv[1:])
print(len(hits))
sys.exit(status)
"""


def test_a_second_process_compiles_nothing_and_says_nothing(tmp_path):
    """The smaller model without drafts, which compiles fastest."""
    command = ["generate", "--prompt", "A", "--max-tokens", "4", "--json"]
    command += ["--target", "embedded-draft", "--draft-length", "0"]
    given = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE", VARIABLE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(given)}
    environment[VARIABLE] = str(tmp_path)

    def run():
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        text, count = done.stdout.splitlines()
        return text.partition('"metrics"')[0], int(count), done.stderr

    first, hits, _ = run()
    kept = entries(tmp_path)
    assert hits == 0 and kept
    second, hits, errors = run()
    if jax.version.__version_info__ < (0, 10, 2):
        # XLA then complains of options that it gave itself, whoever loads a program.
        lines = [x for x in errors.splitlines() if "cpu_aot_loader" not in x]
        errors = "".join(lines)
    assert second == first and hits == len(kept) and errors == ""
    assert entries(tmp_path) == kept
