"""What `trees.py` measures on: shapes, texts of a pair, and trees drawn after them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decode import PROMPTS

import globalres_jax as gr
from globalres_jax.base import Array, Model
from globalres_jax.cache import prefill
from globalres_jax.decoding import scoring, step
from globalres_jax.decoding.state import Request
from globalres_jax.drafters import as_drafter
from globalres_jax.numerics.rows import on_platform
from globalres_jax.tree import TokenTree

#: One path, several, a tree that branches at every level or at the first ones, and
#: paths that part late, of (at most) so many drafted tokens.
SHAPES = {
    4: ("4", "2x2", "2-1", "2+2x1"),
    8: ("8", "2x4", "2-3", "2+3x2"),
    16: ("4x4", "2x8", "3-2-1", "4+4x3"),
    32: ("8x4", "4x8", "4-2-1-1", "4+7x4"),
    64: ("8x8", "4-2-2-1-1", "4+12x5"),
}


def tree_of(shape: str) -> TokenTree:
    """The tree that a name stands for.

    `8` is one path of 8 tokens, `4x2` are 4 paths of 2, `3+4x2` a trunk of 3 before
    them, and in `3-2-1` each node of the three levels has 3, 2 and 1 children.

    Raises:
      ValueError: it is none of these.
    """
    if found := re.fullmatch(r"(\d+)", shape):
        return gr.tree.chain(int(found[1]))
    if found := re.fullmatch(r"(?:(\d+)\+)?(\d+)x(\d+)", shape):
        return gr.tree.delayed(*(int(number or 0) for number in found.groups()))
    if re.fullmatch(r"\d+(-\d+)+", shape):
        return gr.tree.branching([int(width) for width in shape.split("-")])
    raise ValueError(f"shape: {shape!r} is none of 8, 4x2, 3+4x2 and 3-2-1")


def read_prompts(path: Path | None) -> list[str]:
    """Prompts, one a line, or the first of the `turns` in each line of JSON."""
    if path is None:
        return list(PROMPTS)
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        return [json.loads(line)["turns"][0] for line in lines]
    return lines


class Contexts(NamedTuple):
    """Beginnings of text: tokens [C, P] padded with 0, lengths [C]."""

    tokens: np.ndarray
    lengths: np.ndarray


def contexts(pair, prompts: list[str], temperature: float, args) -> Contexts:
    """`args.trees` beginnings of the target's own texts, cut at random places.

    Every prompt is continued several times by `args.text` tokens, each continuation cut
    at `args.cuts` places.
    """
    target, draft = pair
    encode = target.tokenizer.encode
    if target.tokenizer.chat_template is not None:
        chat = target.tokenizer.apply_chat_template

        def encode(text):
            message = [{"role": "user", "content": text}]
            return target.tokenizer.encode(chat(message), special_tokens=False)

    ids = [encode(text) for text in prompts]
    texts = -(-args.trees // args.cuts)
    rows = [ids[i % len(ids)] for i in range(texts)]
    width = max(map(len, rows))
    starts = np.array([row + [0] * (width - len(row)) for row in rows])
    lengths = np.array([len(row) for row in rows])
    config = gr.SpeculativeConfig(temperature=temperature, draft_top_k=args.draft_top_k)
    written = gr.generate(
        jax.random.key(args.seed),
        target,
        draft,
        jnp.asarray(starts),
        jnp.asarray(lengths),
        config,
        max_new_tokens=args.text,
        eos_id=(),
    )
    written = np.asarray(written.tokens)
    tokens = np.zeros((texts * args.cuts, width + args.text), np.int32)
    cuts = np.random.default_rng(args.seed).integers(0, args.text, len(tokens))
    for row, cut in enumerate(cuts):
        text = [*rows[row // args.cuts], *written[row // args.cuts, :cut]]
        tokens[row, : len(text)] = text
    return Contexts(tokens, np.repeat(lengths, args.cuts) + cuts)


@functools.partial(jax.jit, static_argnames="capacity")
def _read(target, drafter, tokens, lengths, capacity: int):
    with on_platform(jax.default_backend()):
        cache = prefill(target, tokens, lengths, capacity)
        return cache, drafter.start(tokens, lengths, capacity)


@jax.jit
def _draw(request: Request, keys: Array, cache, state):
    with on_platform(jax.default_backend()):
        proposal, _ = step.propose(keys, state, request)
        logits, _ = scoring.score(cache, proposal.tokens, request)
        p = request.options.to_probabilities(logits)
        return proposal.tokens, p, proposal.laws


def trees(
    pair, found: Contexts, tree: TokenTree, temperature: float, args
) -> Iterator[tuple]:
    """Trees drawn after the contexts, `args.batch` at a time: tokens, p, laws."""
    target, draft = pair
    config = gr.SpeculativeConfig(
        tree=tree,
        draft_top_k=args.draft_top_k,
        temperature=temperature,
        verifier=gr.verifiers.RecursiveRejection(),
    )
    capacity = found.tokens.shape[1] + tree.num_nodes
    for first in range(0, len(found.lengths) - args.batch + 1, args.batch):
        rows = slice(first, first + args.batch)
        request = Request(
            target=target,
            drafter=as_drafter(draft),
            options=config.sampling.for_rows(args.batch),
            ends=jnp.full((args.batch, 1), -1),
            config=config.program(),
        )
        keys = jax.random.split(jax.random.key(args.seed + 1 + first), args.batch)
        cache, state = _read(
            target, request.drafter, found.tokens[rows], found.lengths[rows], capacity
        )
        yield _draw(request, keys, cache, state)


def last_probabilities(
    model: Model, tokens: np.ndarray, lengths: np.ndarray, temperature: float
) -> np.ndarray:
    """Law of the token after each text: [C, V], from `tokens [C, P]`."""
    logits = np.asarray(_last_logits(model, tokens, lengths), np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@jax.jit
def _last_logits(model: Model, tokens: Array, lengths: Array) -> Array:
    batch, width = tokens.shape
    logits, _ = model.apply(
        model.params,
        tokens,
        jnp.broadcast_to(jnp.arange(width), (batch, width)),
        model.init_cache(batch, width),
        jnp.broadcast_to(jnp.tri(width, dtype=bool), (batch, width, width)),
    )
    return logits[jnp.arange(batch), lengths - 1]
