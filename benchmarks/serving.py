"""Many prompts: the scheduler, fixed batches and one by one; memory; a run killed.

python benchmarks/serving.py --count 5000 --compare 160

Prompts of random length through the embedded pair, with short caps. First all of them
by the command, which is killed half way and started again: each is answered once, and
memory stays as it is. Then some of them three ways, in turns, with the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import globalres_jax as gr

PARAGRAPH = Path(__file__).parent.parent / "tests" / "data" / "paragraph.txt"
CONFIG = gr.SpeculativeConfig(draft_length=3, cache_length=96)
LONGEST = 60


def make_requests(tokens: list[int], count: int) -> list[gr.GenerationRequest]:
    """Pieces of a text of 2 to `LONGEST` tokens, with caps of 1 to 12."""
    rng = np.random.default_rng(0)
    text = np.resize(np.asarray(tokens, np.int32), len(tokens) + LONGEST)
    made = []
    for seed in range(count):
        start = rng.integers(len(tokens))
        prompt = text[start : start + rng.integers(2, LONGEST + 1)]
        cap = int(rng.integers(1, 13))
        made.append(gr.GenerationRequest(prompt=prompt, max_new_tokens=cap, seed=seed))
    return made


def resident(process: int) -> float:
    """Memory of a process in MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text("utf-8")
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1e3


def by_scheduler(target, draft, requests, batch: int) -> list[np.ndarray]:
    done = gr.generate_many(target, draft, requests, config=CONFIG, batch=batch)
    by_index = sorted(done, key=lambda x: x.index)
    return [completion.tokens for completion in by_index]


def by_batches(target, draft, requests, batch: int) -> list[np.ndarray]:
    """`generate` on `batch` requests at a time, as they come."""
    found = []
    for first in range(0, len(requests), batch):
        some = requests[first : first + batch]
        lengths = np.asarray([len(x.prompt) for x in some])
        prompts = np.stack(
            [np.pad(x.prompt, (0, LONGEST - len(x.prompt))) for x in some]
        )
        keys = jax.numpy.stack([x.row_key for x in some])
        caps = [x.max_new_tokens for x in some]
        result = gr.generate(keys, target, draft, prompts, lengths, CONFIG, caps)
        rows = zip(np.asarray(result.tokens), np.asarray(result.lengths), strict=True)
        found += [row[:length] for row, length in rows]
    return found


def one_by_one(target, draft, requests, batch: int) -> list[np.ndarray]:
    return by_batches(target, draft, requests, 1)


WAYS = {"scheduler": by_scheduler, "fixed": by_batches, "one by one": one_by_one}


def in_turns(target, draft, requests, batch: int, turns: int = 4) -> None:
    """Tokens a second of each way, on the same requests, and the same tokens."""
    seconds = dict.fromkeys(WAYS, 0.0)
    for way in WAYS.values():
        way(target, draft, requests[: 2 * batch], batch)  # compiles
    tokens = 0
    for part in np.array_split(np.arange(len(requests) // batch * batch), turns):
        some = [requests[i] for i in part[: len(part) // batch * batch]]
        results = {}
        for name, way in WAYS.items():
            begun = time.perf_counter()
            results[name] = way(target, draft, some, batch)
            seconds[name] += time.perf_counter() - begun
        tokens += sum(map(len, results["scheduler"]))
        for name in WAYS:
            same = map(np.array_equal, results[name], results["scheduler"])
            assert all(same), name
    print(f"{tokens} tokens each way, the same ones, batch {batch}:")
    for name, spent in seconds.items():
        print(f"  {name}: {tokens / spent:.0f} tokens/s")


def killed_and_resumed(requests, batch: int, tokenizer) -> None:
    """The command on all prompts, killed half way, and started again."""
    with tempfile.TemporaryDirectory() as folder:
        prompts, out = Path(folder, "prompts.jsonl"), Path(folder, "answers.jsonl")
        with prompts.open("w", encoding="utf-8") as file:
            for request in requests:
                line = {
                    "prompt": tokenizer.decode(request.prompt),
                    "max_tokens": request.max_new_tokens,
                    "seed": request.seed,
                }
                file.write(json.dumps(line) + "\n")
        command = [sys.executable, "-m", "globalres_jax", "generate", "--json"]
        command += ["--draft-length", "3", "--batch", str(batch)]
        command += ["--prompts", prompts, "--out", out]
        half, memory = _watched(command, out, len(requests) // 2, len(requests) // 20)
        print("memory on the way to half of them (MB):", *memory)
        with out.open("ab") as file:
            file.write(b'{"line": 1')  # what a kill may leave behind
        end, memory = _watched(command, out, len(requests) + 1, len(requests) // 20)
        print("memory on the way to the end (MB):", *memory)
        answers = [json.loads(line) for line in out.read_bytes().splitlines()]
    summary = json.loads(end)
    lines = sorted(answer["line"] for answer in answers)
    assert lines == list(range(1, len(requests) + 1))
    assert summary["answered_before"] + summary["answered"] == len(requests)
    assert not half and summary["refused"] == 0
    print(
        f"killed after {summary['answered_before']} answers, resumed with "
        f"{summary['answered']}: each of {len(requests)} lines is answered once; "
        f"{summary['tokens_per_second']:.0f} tokens/s, compilation included"
    )


def _watched(command: list, out: Path, most: int, every: int) -> tuple[bytes, list]:
    """Runs a command until it ends or `out` has `most` lines, when it is killed.

    Returns:
      What it said, and its memory in MB whenever `every` more lines were there.
    """
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    memory, seen = [], 0
    while child.poll() is None and seen < most:
        time.sleep(0.5)
        before, seen = seen, out.read_bytes().count(b"\n") if out.exists() else 0
        if before // every < seen // every and child.poll() is None:
            memory.append(round(resident(child.pid)))
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    return child.communicate()[0], memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--compare", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    target, draft = gr.models.load_pair("embedded", "embedded-draft")
    tokens = target.tokenizer.encode(PARAGRAPH.read_text("utf-8"))
    requests = make_requests(tokens, args.count)
    killed_and_resumed(requests, args.batch, target.tokenizer)
    in_turns(target, draft, requests[: args.compare], args.batch)


if __name__ == "__main__":
    main()
