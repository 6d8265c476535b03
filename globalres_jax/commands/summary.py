"""What a run over many prompts says: a bar while it goes, and what it came to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from globalres_jax.commands.printing import metrics_table, scores_of
from globalres_jax.decoding.metrics import Metrics, plain_numbers, total
from globalres_jax.serving import Completion


@dataclasses.dataclass
class Summary:
    """What has come of a run so far.

    Attributes:
      before: answers that were there when it began.
      broken: numbers of lines that were left out.
      answered: texts that it wrote.
      refused: requests that it answered with an error.
      num_tokens: of those texts.
      seconds: since the first request, compilation included.
      counts: of all requests together; None before the first.
    """

    before: int = 0
    broken: list[int] = dataclasses.field(default_factory=list)
    answered: int = 0
    refused: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    counts: Metrics | None = None

    def add(self, completion: Completion, seconds: float) -> None:
        """Counts one request that has ended, `seconds` after the first began."""
        self.seconds = seconds
        if completion.result is None:
            self.refused += 1
            return
        self.answered += 1
        self.num_tokens += len(completion.tokens)
        known = [] if self.counts is None else [self.counts]
        self.counts = total([*known, completion.result.metrics])

    @property
    def tokens_per_second(self) -> float:
        """Compilation included."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def described(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "answered": self.answered,
            "refused": self.refused,
            "answered_before": self.before,
            "broken_lines": self.broken,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "metrics": {} if self.counts is None else plain_numbers(self.counts),
        }

    def show(self, as_json: bool, verbose: bool) -> None:
        """One JSON object, or some lines, to stdout."""
        if as_json:
            print(json.dumps(self.described(), allow_nan=False))
            return
        said = [f"{self.answered} answered"]
        if self.refused:
            said.append(f"{self.refused} refused (their answers say why)")
        if self.before:
            said.append(f"{self.before} had been answered before")
        if self.broken:
            said.append(f"{len(self.broken)} broken lines left out")
        print(", ".join(said))
        if self.counts is None:
            return
        metrics = plain_numbers(self.counts)
        print(
            f"{self.num_tokens} tokens in {self.seconds:.1f} s, compilation included: "
            f"{self.tokens_per_second:.1f} tokens per second, "
            f"{metrics['mean_acceptance_length']:.2f} tokens per target call, "
            f"acceptance rate {metrics['acceptance_rate']:.3f}"
        )
        if verbose:
            Console(stderr=True).print(metrics_table(metrics))


def as_answer(completion: Completion) -> dict[str, Any]:
    """A result as its line has it."""
    if completion.result is None:
        return {"finish_reason": "error", "error": completion.error}
    answer = {
        "text": completion.text,
        "num_tokens": len(completion.tokens),
        "finish_reason": completion.finish_reason,
        "metrics": completion.metrics,
    }
    scores = scores_of(completion.result, len(completion.tokens))
    return answer if scores is None else answer | {"log_probabilities": scores}


@contextlib.contextmanager
def progress(count: int) -> Iterator[Callable[[Summary, Completion | None], None]]:
    """A bar on stderr, if that is a terminal, over `count` requests.

    Yields:
      A function that shows how far a `Summary` is, and writes a line about a completion
      where one is given.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("", total=count, said="")

        def show(summary: Summary, completion: Completion | None) -> None:
            said = f"{summary.tokens_per_second:.0f} tokens/s"
            bar.update(task, completed=summary.answered + summary.refused, said=said)
            if completion is None:
                return
            line = _line(completion)
            if hidden:
                print(line, file=sys.stderr)
            else:
                console.print(line)

        yield show


def _line(completion: Completion) -> str:
    """A request in one line."""
    number, sample = completion.request.name[:2]
    said = f"line {number}, sample {sample}: "
    if completion.result is None:
        return f"{said}{completion.error}"
    metrics = completion.metrics
    return (
        f"{said}{completion.finish_reason}, {len(completion.tokens)} tokens, "
        f"{metrics['mean_acceptance_length']:.2f} per target call, acceptance rate "
        f"{metrics['acceptance_rate']:.3f}"
    )
