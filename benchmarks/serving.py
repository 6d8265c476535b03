"""Many prompts: the scheduler, fixed batches and one by one; memory; a run killed.

python benchmarks/serving.py --count 5000 --compare 400

Prompts of random length through the embedded pair, with short caps. First all of them
in one process: each is answered once, and memory stays as it is. Then some of them
three ways, in turns, with the same tokens. Then all again by the command, which is
killed half way and started again: none is lost, none is there twice.
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
CONFIG = gr.SpeculativeConfig(cache_length=160)


def make_requests(tokens: list[int], count: int) -> list[gr.GenerationRequest]:
    """Pieces of a text of 2 to 120 tokens, with caps of 1 to 16."""
    rng = np.random.default_rng(0)
    text = np.resize(np.asarray(tokens, np.int32), len(tokens) + 120)
    made = []
    for seed in range(count):
        start = rng.integers(len(tokens))
        prompt = text[start : start + rng.integers(2, 121)]
        cap = int(rng.integers(1, 17))
        made.append(gr.GenerationRequest(prompt=prompt, max_new_tokens=cap, seed=seed))
    return made


def resident() -> float:
    """Memory of this process in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1e3


def all_at_once(target, draft, requests, batch: int) -> None:
    """Every request once, and the memory on the way."""
    seen = np.zeros(len(requests), int)
    tokens, memory, begun = 0, [], time.perf_counter()
    done = gr.generate_many(target, draft, requests, config=CONFIG, batch=batch)
    for count, completion in enumerate(done):
        assert completion.error is None
        seen[completion.index] += 1
        tokens += len(completion.tokens)
        if count % (len(requests) // 10) == 0:
            memory.append(resident())
    seconds = time.perf_counter() - begun
    assert (seen == 1).all()
    print(
        f"{len(requests)} requests, each answered once: {tokens} tokens in "
        f"{seconds:.0f} s, {tokens / seconds:.0f} tokens/s, batch {batch}"
    )
    print("memory on the way (MB):", *(f"{x:.0f}" for x in (*memory, resident())))


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
        prompts = np.stack([np.pad(x.prompt, (0, 120 - len(x.prompt))) for x in some])
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
        command += ["--prompts", prompts, "--out", out, "--batch", str(batch)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        while not out.exists() or out.read_bytes().count(b"\n") < len(requests) // 2:
            assert child.poll() is None, "ended before it was killed"
            time.sleep(1)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        half = out.read_bytes()
        out.write_bytes(half + b'{"line": 1')  # what a kill may leave behind
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        summary = json.loads(said)
        answers = [json.loads(line) for line in out.read_bytes().splitlines()]
    lines = sorted(answer["line"] for answer in answers)
    assert lines == list(range(1, len(requests) + 1))
    kept = summary["answered_before"]
    assert kept == half.count(b"\n") and kept + summary["answered"] == len(requests)
    print(
        f"killed after {kept} answers, resumed with {summary['answered']}: each of "
        f"{len(requests)} lines is answered once"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--compare", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    target, draft = gr.models.load_pair("embedded", "embedded-draft")
    tokens = target.tokenizer.encode(PARAGRAPH.read_text("utf-8"))
    requests = make_requests(tokens, args.count)
    in_turns(target, draft, requests[: args.compare], args.batch)
    all_at_once(target, draft, requests, args.batch)
    killed_and_resumed(requests, args.batch, target.tokenizer)


if __name__ == "__main__":
    main()
