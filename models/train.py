"""Trains the embedded pair on any text file.

    python -m globalres_jax.models.train --text FILE --out FOLDER

A byte-level BPE tokenizer first, then the target by cross-entropy, then the draft by
distillation: it learns the target's whole next-token distribution, since what a draft
is paid for is its overlap with the target, not with the text.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from globalres_jax.models import END_OF_TEXT
from globalres_jax.models.checkpoint import load_params, save_checkpoint
from globalres_jax.models.tokenizer import TOKENIZER
from globalres_jax.models.transformer import Transformer, TransformerConfig
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from globalres_jax.base import Array, Params

TARGET = dict(
    num_layers=6, width=256, num_heads=8, num_kv_heads=4, head_dim=32, mlp_width=800
)
DRAFT = dict(
    num_layers=1, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=384
)


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer; token 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def windows(tokens: np.ndarray, batch: int, length: int, seed: int) -> Iterator[Array]:
    """Endless random windows [batch, length] of the token stream."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - length, batch)
        yield jnp.asarray(tokens[starts[:, None] + np.arange(length)])


def cross_entropy(logits: Array, batch: Array) -> Array:
    """Mean nats per next token of `batch`."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], batch[:, 1:]
    ).mean()


def overlap(target_logits: Array, draft_logits: Array) -> Array:
    """Mean single-draft acceptance rate sum_i min(p_i, q_i)."""
    p, q = jax.nn.softmax(target_logits), jax.nn.softmax(draft_logits)
    return jnp.minimum(p, q).sum(-1).mean()


def fit(
    name: str,
    params: Params,
    loss_fn: Callable[[Params, Array, Array], Array],
    validate: Callable[[Params], Array],
    batches: Iterator[Array],
    steps: int,
    peak: float,
    seed: int,
) -> Params:
    """AdamW with warm-up and cosine decay; returns the best validated parameters."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(100, steps // 5 + 1), steps, 0.02 * peak
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=0.1),
    )
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, opt_state, batch, key):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch, key)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    best, best_params = np.inf, params
    with Progress() as progress:
        bar = progress.add_task(name, total=steps)
        for step in range(1, steps + 1):
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, opt_state, loss = update(params, opt_state, next(batches), key)
            if step % 100 == 0 or step == steps:
                held_out = float(validate(params))
                if held_out < best:
                    best, best_params = held_out, params
                progress.console.print(
                    f"{name} step {step}: loss {float(loss):.3f}, "
                    f"validation {held_out:.3f}"
                )
            progress.update(bar, advance=1)
    return best_params


def main(argv: list[str] | None = None) -> None:
    """Trains tokenizer, target and draft, and writes them under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="any text file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--draft-steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=129, help="tokens in a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep-target", action="store_true", help="train the draft only"
    )
    args = parser.parse_args(argv)

    text = args.text.read_text()
    cut = int(0.9 * len(text))
    if args.keep_target:
        tokenizer = Tokenizer.from_file(str(args.out / TOKENIZER))
    else:
        tokenizer = train_tokenizer(text[:cut], args.vocab_size)
        args.out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(args.out / TOKENIZER))
    vocab_size = tokenizer.get_vocab_size()
    train_ids = np.asarray(tokenizer.encode(text[:cut]).ids, np.int32)
    held_ids = np.asarray(tokenizer.encode(text[cut:]).ids, np.int32)
    rows = min(64, len(held_ids) // args.length)
    held = jnp.asarray(held_ids[: rows * args.length].reshape(rows, args.length))
    batches = windows(train_ids, args.batch, args.length, args.seed)

    target_config = TransformerConfig(vocab_size, dropout=0.1, **TARGET)
    draft_config = TransformerConfig(vocab_size, **DRAFT)
    target_graph, target = nnx.split(
        Transformer(target_config, rngs=nnx.Rngs(args.seed))
    )
    draft_graph, draft = nnx.split(
        Transformer(draft_config, rngs=nnx.Rngs(args.seed + 1))
    )

    def score(graph, params: Params, batch: Array, key: Array | None = None) -> Array:
        rngs = None if key is None else nnx.Rngs(key)
        return nnx.merge(graph, params).score(batch, rngs)

    if args.keep_target:
        target = load_params(args.out / "target", target_config)
    else:
        target = fit(
            "target",
            target,
            lambda w, x, key: cross_entropy(score(target_graph, w, x, key), x),
            jax.jit(lambda w: cross_entropy(score(target_graph, w, held), held)),
            batches,
            args.steps,
            2e-3,
            args.seed,
        )
        save_checkpoint(args.out / "target", target_config, target, jnp.bfloat16)

    # Texts that the target itself wrote are not needed: it overlaps its training text.
    held_logits = jax.jit(lambda w: score(target_graph, w, held))(target)

    def distillation(weights: Params, batch: Array, key: Array) -> Array:
        teacher = jax.lax.stop_gradient(score(target_graph, target, batch))
        student = jax.nn.log_softmax(score(draft_graph, weights, batch))
        return optax.kl_divergence(student, jax.nn.softmax(teacher)).mean()

    @jax.jit
    def validate_draft(held_logits: Array, weights: Params) -> Array:
        return -overlap(held_logits, score(draft_graph, weights, held))

    draft = fit(
        "draft",
        draft,
        distillation,
        functools.partial(validate_draft, held_logits),
        batches,
        args.draft_steps,
        5e-3,
        args.seed + 1,
    )
    save_checkpoint(args.out / "draft", draft_config, draft, jnp.bfloat16)
    rate = overlap(held_logits, score(draft_graph, draft, held))
    print(f"single-draft acceptance on held-out text: {float(rate):.3f}")


if __name__ == "__main__":
    main()
