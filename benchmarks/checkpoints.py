"""A real checkpoint against the reference implementation's reading of the same file.

    python benchmarks/checkpoints.py FILE.gguf --reference reference.npz

Reports load time, peak memory, cosine of the logits, share of positions with the same
most likely token, and the perplexity of a fixed English paragraph by both. The
reference is made by `tests/data/make_reference.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.commands.loading import load_measured

PARAGRAPH = Path(__file__).parent.parent / "tests" / "data" / "paragraph.txt"


def perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Exp of the mean negative log-likelihood of each token after the first."""
    log_p = jax.nn.log_softmax(jnp.asarray(logits[:-1], jnp.float32))
    picked = np.asarray(log_p)[np.arange(len(tokens) - 1), tokens[1:]]
    return float(np.exp(-picked.mean(dtype=np.float64)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    model, _, loading = load_measured(str(args.file), "prompt-lookup", args.dtype)
    reference = np.load(args.reference)
    tokens, wanted = reference["tokens"], reference["logits"]
    text = PARAGRAPH.read_text("utf-8")
    length = len(tokens)
    logits, _ = jax.jit(model.apply)(
        model.params,
        jnp.asarray(tokens)[None],
        jnp.arange(length)[None],
        model.init_cache(1, length),
        jnp.tril(jnp.ones((length, length), bool))[None],
    )
    logits = np.asarray(logits[0], np.float64)
    wanted = wanted.astype(np.float64)
    sizes = np.linalg.norm(logits, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = (logits * wanted).sum(1) / sizes
    same = logits.argmax(1) == wanted.argmax(1)
    ours, theirs = perplexity(logits, tokens), perplexity(wanted, tokens)
    report = {
        "file": args.file.name,
        "positions": length,
        "same_tokens": model.tokenizer.encode(text)[:length] == tokens.tolist(),
        "load_s": round(loading.seconds, 2),
        "peak_over_parameters": round(loading.peak_bytes / loading.parameter_bytes, 3),
        "smallest_cosine": float(cosine.min()),
        "same_top_1": float(same.mean()),
        "largest_difference": float(np.abs(logits - wanted).max()),
        "perplexity": ours,
        "reference_perplexity": theirs,
    }
    print(loading, file=sys.stderr)
    print(json.dumps(report, indent=2))
    close = abs(ours / theirs - 1) <= 0.005
    return int(not (cosine.min() > 0.9999 and same.mean() >= 0.99 and close))


if __name__ == "__main__":
    sys.exit(main())
