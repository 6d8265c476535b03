"""One small draft, fitted to the embedded target by each loss of `gr.losses`.

    python benchmarks/losses.py [--steps 200] [--seeds 3] [--only NAME ...]

The draft has the shape of the embedded one and fresh weights for each seed; every loss
takes the same steps over the same batches of texts that the target wrote. Measured on
other such texts: the optimal acceptance rate of n i.i.d. drafts, and the expected
number of accepted drafts of trees of 4 paths of 4 tokens by one race a layer. With
standard errors over the seeds.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from decode import encode_prompts

import globalres_jax as gr
from globalres_jax import losses
from globalres_jax.base import Array, Model, Params
from globalres_jax.models.train import DRAFT, new_student

#: Tokens of a text, and how many texts a batch has; of a tree's context, and of a batch
#: how many there are, with so many trees each.
LENGTH, BATCH = 64, 8
CONTEXT, ROOTS, TREES = 16, 4, 2
#: Drafts of trees come from so many likeliest tokens.
SUPPORT = 64
LEARNT, MEASURED = gr.paths(2, 3), gr.paths(4, 4)
COUNTS = (1, 2, 4, 8)
PEAK = 5e-3


def optimum(num_drafts: int, law=gr.IID) -> Callable:
    return functools.partial(
        losses.negative_log_optimum, num_drafts=num_drafts, law=law
    )


ROWS = {
    "KL(p, q)": losses.kl_divergence,
    "KL(q, p)": losses.reverse_kl_divergence,
    "Jensen-Shannon": losses.jensen_shannon,
    "total variation": losses.total_variation,
    "LK: -log alpha*_1": losses.lk,
    "LK mixture: KL and total variation": losses.lk_mixture,
    "-log alpha*_2": optimum(2),
    "-log alpha*_4": optimum(4),
    "-log alpha*_8": optimum(8),
    "-log alpha*_2, without replacement": optimum(2, gr.WithoutReplacement),
    "mixture: KL and -log alpha*_4": functools.partial(
        losses.lk_mixture, near=optimum(4)
    ),
}
#: Begins with KL: from fresh weights a tree accepts nothing.
TREE = "half of the steps KL(p, q), then accepted length"


class Teacher(NamedTuple):
    """Texts of the target [R, L], and what it says to them [R, L, V]."""

    texts: Array
    logits: Array


def write_texts(target: Model, draft: Model, rows: int) -> Array:
    """Texts [rows, LENGTH] sampled from the target."""
    prompts, lengths = encode_prompts(target.tokenizer)
    times = -(-rows // len(prompts))
    prompts, lengths = jnp.tile(prompts, (times, 1)), jnp.tile(lengths, times)
    config = gr.SpeculativeConfig(num_drafts=2, draft_length=3)
    written = gr.generate(
        jax.random.key(1), target, draft, prompts, lengths, config, LENGTH, eos_id=-1
    )
    return written.tokens[:rows]


def draw_trees(key: Array, models: tuple, params: tuple, tree, contexts: Array):
    """A tree below each context [C, L]: tokens [C, N], and logits of both [C, N, V].

    Paths alone (`gr.paths`), so that a node's text is that of one sequence.
    """
    count, width = len(contexts), len(tree.levels[1])
    texts = jnp.repeat(contexts, width, axis=0)
    for key_level in jax.random.split(key, tree.depth):
        q = jax.nn.softmax(models[1].score(params[1], texts)[:, -1])
        law = jax.vmap(lambda row: gr.IID(row, 1, SUPPORT))(q)
        keys = jax.random.split(key_level, len(texts))
        drawn = jax.vmap(lambda one, key: one.sample(key))(law, keys)
        texts = jnp.concatenate([texts, drawn], axis=1)

    def nodes(rows: Array) -> Array:
        paths = rows[:, contexts.shape[1] - 1 :]
        paths = paths.reshape(count, width, tree.depth + 1, *rows.shape[2:])
        below = jnp.moveaxis(paths[:, :, 1:], 1, 2)
        below = below.reshape(count, -1, *rows.shape[2:])
        return jnp.concatenate([paths[:, :1, 0], below], axis=1)

    logits = [
        nodes(model.score(p, texts)) for model, p in zip(models, params, strict=True)
    ]
    return nodes(texts), *logits


def tree_loss(models, teacher_params, params: Params, contexts: Array, key: Array):
    """Mean of `negative_accepted_length` over contexts [C, L], TREES of each."""
    contexts = jnp.repeat(contexts, TREES, axis=0)
    both = teacher_params, params
    drawn = draw_trees(key, models, both, LEARNT, contexts)
    tokens, target, draft = jax.tree.map(
        lambda x: x.reshape(-1, TREES, *x.shape[1:]), drawn
    )
    loss = functools.partial(
        losses.negative_accepted_length, LEARNT, max_support=SUPPORT
    )
    return jnp.mean(jax.vmap(loss)(tokens, jax.nn.softmax(target), draft))


class Learner(NamedTuple):
    """What a loss trains with; compiled once for all seeds.

    Attributes:
      start: `start(params) -> state` of the optimizer.
      rows: `rows(params, state, teacher, key) -> params, state, finite`, one step.
      trees: the same by the tree loss; the teacher's texts are the roots' contexts.
    """

    start: Callable
    rows: Callable
    trees: Callable


def learner(name: str, models, teacher_params, steps: int) -> Learner:
    """The optimizer and the steps of one loss."""
    warm_up = steps // 10 + 1
    schedule = optax.warmup_cosine_decay_schedule(0, PEAK, warm_up, steps, 0.02 * PEAK)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99))
    row_loss = ROWS.get(name, losses.kl_divergence)

    def by_rows(params: Params, teacher: Teacher, key: Array) -> Array:
        p = jax.nn.softmax(teacher.logits)
        return jnp.mean(row_loss(p, models[1].score(params, teacher.texts)))

    def by_trees(params: Params, teacher: Teacher, key: Array) -> Array:
        return tree_loss(models, teacher_params, params, teacher.texts, key)

    def step(loss: Callable) -> Callable:
        def update(params: Params, state, teacher: Teacher, key: Array):
            gradient = jax.grad(loss)(params, teacher, key)
            finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gradient)]
            updates, state = rule.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, jnp.all(jnp.stack(finite))

        return jax.jit(update)

    return Learner(jax.jit(rule.init), step(by_rows), step(by_trees))


def fit(name: str, learns: Learner, taught: Teacher, params: Params, steps: int, seed):
    """The draft's parameters after the steps of one loss."""
    params = jax.device_put(params, jax.local_devices()[0])
    state, rng = learns.start(params), np.random.default_rng(seed)
    for step in range(steps):
        rows = rng.integers(0, len(taught.texts), BATCH)
        batch, update = jax.tree.map(lambda x, rows=rows: x[rows], taught), learns.rows
        if name == TREE and 2 * step >= steps:
            end = rng.integers(CONTEXT, LENGTH + 1)
            texts = batch.texts[:ROOTS, end - CONTEXT : end]
            batch, update = Teacher(texts, jnp.zeros(())), learns.trees
        key = jax.random.fold_in(jax.random.key(seed), step)
        params, state, finite = update(params, state, batch, key)
        if not finite:
            raise FloatingPointError(f"{name}, step {step}: a gradient is not finite")
    return params


def measure(models, teacher_params, held: Teacher, params: Params) -> Array:
    """[5] what a draft accepts on held-out texts: at each of COUNTS, and of trees."""

    def rates(teacher_row: Array, draft_row: Array) -> Array:
        p, q = jax.nn.softmax(teacher_row), jax.nn.softmax(draft_row)
        return jnp.stack([gr.optimal_acceptance_rate(p, gr.IID(q, n)) for n in COUNTS])

    def length(tokens: Array, target: Array, draft: Array) -> Array:
        loss = losses.negative_accepted_length
        p = jax.nn.softmax(target)
        return -loss(MEASURED, tokens[None], p[None], draft[None], max_support=SUPPORT)

    logits = models[1].score(params, held.texts)
    rows = jax.vmap(jax.vmap(rates))(held.logits, logits)
    contexts = held.texts[:, : 2 * CONTEXT]
    both = teacher_params, params
    trees = draw_trees(jax.random.key(2), models, both, MEASURED, contexts)
    lengths = jax.lax.map(lambda tree: length(*tree), trees)
    return jnp.append(rows.mean((0, 1)), lengths.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=192, help="to learn from")
    parser.add_argument("--held", type=int, default=32, help="texts to measure on")
    parser.add_argument("--only", nargs="*", help="losses, by the table's names")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    target, draft = gr.models.load_pair("embedded", "embedded-draft", jnp.float32)
    texts = write_texts(target, draft, args.texts + args.held)
    score = jax.jit(target.apply.score)
    said = jnp.concatenate(
        [score(target.params, part) for part in jnp.split(texts, len(texts) // 16)]
    )
    taught = Teacher(texts[: args.texts], said[: args.texts])
    held = Teacher(texts[args.texts :], said[args.texts :])
    models = target.apply, new_student(DRAFT, target.vocab_size, 0).function
    look = jax.jit(functools.partial(measure, models))
    table = []
    print("| loss | " + " | ".join(f"n = {n}" for n in COUNTS) + " | accepted |")
    print("|---" * (len(COUNTS) + 2) + "|", flush=True)
    for name in args.only or [*ROWS, TREE]:
        found, start = [], time.perf_counter()
        learns = learner(name, models, target.params, args.steps)
        for seed in range(args.seeds):
            params = new_student(DRAFT, target.vocab_size, seed).params
            params = fit(name, learns, taught, params, args.steps, seed)
            found.append(np.asarray(look(target.params, held, params)))
        mean = np.mean(found, axis=0)
        error = np.std(found, axis=0, ddof=min(1, args.seeds - 1))
        error = error / np.sqrt(args.seeds)
        cells = (f"{m:.4f} +- {e:.4f}" for m, e in zip(mean, error, strict=True))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        table.append(
            {
                "loss": name,
                "mean": mean.tolist(),
                "standard_error": error.tolist(),
                "seconds": time.perf_counter() - start,
            }
        )
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
