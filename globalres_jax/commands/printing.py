"""What `generate` says: a text as it is written, tables, JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.table import Table

from globalres_jax.base import Array
from globalres_jax.decoding.generation import Generation
from globalres_jax.decoding.metrics import plain_numbers


class TimedGeneration:
    """A `Generation` of one prompt, and how long the call took.

    Attributes:
      tokens: [T] the emitted tokens.
      from_draft: [T] whether each had been drafted.
      failed: whether it ended because the target's logits said nothing.
      finish_reason: "stop", "length" or "failed"; None if it was interrupted.
      counts: as they were counted.
      accepted_lengths: drafted tokens of the text, step by step.
      metrics: plain numbers and lists.
      scores: its log-probabilities, if there are any.
    """

    def __init__(
        self,
        result: Generation,
        compiling: float,
        running: float,
        interrupted: bool = False,
    ):
        length = int(np.asarray(result.lengths)[0])
        self.tokens = np.asarray(result.tokens)[0, :length]
        self.from_draft = np.asarray(result.from_draft)[0, :length]
        self.failed = bool(np.asarray(result.failed)[0])
        self.finish_reason = None if interrupted else result.finish_reasons[0]
        self._text = None if result.texts is None else result.texts[0]
        self.scores = scores_of(result, length)
        self.counts = result.metrics
        self.accepted_lengths = result.accepted_lengths()[0]
        self.metrics = plain_numbers(result.metrics)
        self.metrics["tokens_per_second"] = length / running
        self.metrics["seconds_with_compilation"] = compiling + running

    def text(self, tokenizer, prompt: Sequence[int]) -> str:
        """What the tokens add to the prompt's, up to a stop string."""
        if self._text is not None:
            return self._text
        return tokenizer.decode_continuation(prompt, self.tokens)

    def pieces(self, tokenizer, prompt: Sequence[int]) -> list[str]:
        """The text of each token; together they are `text`."""
        left, pieces = len(self.text(tokenizer, prompt)), []
        for piece in tokenizer.decode_pieces(prompt, self.tokens):
            pieces.append(piece[:left])
            left -= len(pieces[-1])
        return pieces


def scores_of(result: Generation, length: int) -> list[dict] | None:
    """Log-probabilities of the first row's tokens, as JSON has them."""
    if result.log_probabilities is None:
        return None

    def numbers(x: Array) -> list:
        # JSON has no infinity.
        values = np.asarray(x)[0, :length].astype(object)
        return np.where(np.isfinite(np.asarray(x)[0, :length]), values, None).tolist()

    columns = {
        "token": np.asarray(result.tokens)[0, :length].tolist(),
        "log_probability": numbers(result.log_probabilities),
        "sampling_log_probability": numbers(result.sampling_log_probabilities),
    }
    if result.top_tokens is not None:
        columns["top_tokens"] = np.asarray(result.top_tokens)[0, :length].tolist()
        columns["top_log_probabilities"] = numbers(result.top_log_probabilities)
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def as_json(tokenizer, asked: str, results: dict, prompt: Sequence[int]) -> dict:
    """What was written and measured, as JSON has it.

    Args:
      tokenizer: the target's.
      asked: the prompt as it was given.
      results: a `TimedGeneration` for "speculative", and perhaps for "plain".
      prompt: tokens.
    """

    def describe(result: TimedGeneration) -> dict:
        described = {
            "text": result.text(tokenizer, prompt),
            "num_tokens": len(result.tokens),
            "finish_reason": result.finish_reason,
            "failed": result.failed,
            "accepted_lengths": result.accepted_lengths,
            "metrics": result.metrics,
        }
        if result.scores is not None:
            described["log_probabilities"] = result.scores
        return described

    described = {"prompt": asked, **describe(results["speculative"])}
    if "plain" in results:
        described["plain"] = describe(results["plain"])
    return described


class Writer:
    """Writes a text to stdout while it is decoded; drafted tokens are green."""

    def __init__(self, tokenizer, before: str, prompt: Sequence[int]):
        """Nothing yet: `before` is written with the first tokens behind `prompt`."""
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._before = styled(self._console, before, "bold")
        self._pieces = tokenizer.stream_pieces(prompt)
        self._drafted: list[bool] = []

    def write(
        self,
        tokens: Sequence[int],
        from_draft: Sequence[bool],
        pieces: list[str] | None = None,
    ) -> None:
        """Writes what is whole characters by now, or the `pieces` that are given."""
        self._drafted += map(bool, from_draft)
        self._print(self._pieces.add(tokens) if pieces is None else pieces)

    def end(self, interrupted: bool) -> None:
        """Ends the line; half a character at the end of a whole text is shown as is."""
        self._print([] if interrupted else self._pieces.end())
        print()
        if self._console.is_terminal:
            note = "\ngreen: drafted; plain: from the target"
            self._console.print(note, style="dim")

    def _print(self, pieces: list[str]) -> None:
        text, self._before = [self._before], ""
        for piece, drafted in zip(pieces, self._drafted, strict=False):
            text.append(styled(self._console, piece, "green" if drafted else ""))
        self._drafted = self._drafted[len(pieces) :]
        print("".join(text), end="", flush=True)


def show_results(tokenizer, before: str, results: dict, prompt: Sequence[int]) -> None:
    """The table below a text, and what plain decoding wrote if it did."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print()
    console.print(_table(results))
    if "plain" in results:
        plain = results["plain"]
        console.print("\nplain decoding wrote:", style="dim")
        print(before + plain.text(tokenizer, prompt))


def metrics_table(metrics: dict) -> Table:
    """All metrics by their names, of `plain_numbers`."""
    table = Table(box=None, pad_edge=False, show_header=False)

    def shown(value) -> str:
        if isinstance(value, list):
            return "  ".join(map(shown, value))
        if value is None:
            return "-"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    for name, value in metrics.items():
        table.add_row(name, shown(value))
    return table


def styled(console: Console, text: str, style: str) -> str:
    """A text in a style where the terminal shows styles, and as it is elsewhere.

    Rich itself would read markup and smileys in it, and spread out its tabs.
    """
    plain = not console.is_terminal or console.legacy_windows or console.no_color
    if plain or console.color_system is None:
        return text
    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


def _table(results: dict) -> Table:
    """What was measured, a column for each way to decode."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")

    def row(label: str, key: str, form: str) -> None:
        cells = []
        for name, result in results.items():
            drafts = name == "speculative" or not key.endswith("rate")
            value = result.metrics[key]
            known = drafts and value is not None
            cells.append(form.format(value) if known else "-")
        table.add_row(label, *cells)

    row(
        "mean acceptance length (tokens per target call)",
        "mean_acceptance_length",
        "{:.2f}",
    )
    row("acceptance rate", "acceptance_rate", "{:.3f}")
    if results["speculative"].metrics["optimal_acceptance_rate"] is not None:
        row(
            "optimal acceptance rate, same positions",
            "optimal_acceptance_rate",
            "{:.3f}",
        )
    row("tokens per second", "tokens_per_second", "{:.1f}")
    row("first call, compilation included (s)", "seconds_with_compilation", "{:.1f}")
    return table
