"""The best of many texts by a reward, most of them given up early.

Speculative rejection (Sun, Haider, Zhang, Yang, Qiu, Yin, Wang, Bartlett and Zanette:
Fast Best-of-N Decoding via Speculative Rejection, arXiv 2410.20290): N texts are begun;
whenever the length has doubled, those whose rewards are lowest so far are given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from globalres_jax.base import Array, Drafter, Model
from globalres_jax.decoding.config import AUTO, SpeculativeConfig
from globalres_jax.decoding.options import SamplingOptions
from globalres_jax.decoding.program import as_program
from globalres_jax.decoding.rounds import Round, ranking, run_rounds
from globalres_jax.validation import (
    as_array,
    as_integer,
    as_number,
    is_concrete,
    wrong_kind,
)

#: `(tokens [B, T], lengths [B]) -> [B]`.
Reward = Callable[[Array, Array], Array]

#: Most rows that are decoded with drafts, where nothing is said. With the embedded pair
#: on a CPU drafts are about as fast as plain decoding up to so many, and slower beyond.
SPECULATE_UP_TO = 2


class BestOfN(NamedTuple):
    """Result of `best_of_n`: all N texts, those that were given up cut off.

    Attributes:
      tokens: [N, T] int32, the config's `pad_id` beyond `lengths`.
      lengths: [N] number of tokens.
      rewards: [N, R] after each of the R rounds; of a text that had been given up by
        then, its last.
      rounds: [N] in how many rounds it took part, at least 1.
      complete: [N] bool, the text had ended when it was last looked at, with an end
        token or at the cap. What was given up later stays ranked by its reward.
      failed: [N] bool, it ended since the target's logits were broken.
      steps: [N] target calls that each text took.
      best: [] the complete text of the largest reward.
    """

    tokens: Array
    lengths: Array
    rewards: Array
    rounds: Array
    complete: Array
    failed: Array
    steps: Array
    best: Array

    @property
    def best_tokens(self) -> np.ndarray:
        """The best text, on the host."""
        best = int(self.best)
        return np.asarray(self.tokens[best])[: int(self.lengths[best])]


def best_of_n(
    key: Array,
    target: Model,
    draft: Model | Drafter | None,
    prompt: Array,
    reward: Reward,
    num_samples: int = 16,
    config: SpeculativeConfig | None = None,
    max_new_tokens: int = 64,
    eos_id: int | Sequence[int] | None = None,
    options: SamplingOptions | None = None,
    *,
    kept: float = 0.5,
    first_length: int | None = None,
    speculate_up_to: int | None = None,
) -> BestOfN:
    """Samples many texts, gives up the worst as they grow, and returns the best.

    The prompt is read once. When every text has `first_length` tokens, or has ended,
    a share `kept` of them goes on, those of the largest rewards so far; likewise at
    twice the length, and so on up to the cap. A text that goes on has the very tokens
    that it would have had alone: a row's key is `fold_in(key, i)`, and only the drafts
    depend on how many rows there are. Under drafts a step may end some tokens beyond a
    length, and the reward sees those, too.

    Args:
      key: one random key, or one for each text.
      target: the model whose distribution the texts have, before any is chosen.
      draft: a cheaper model, another `Drafter`, or None.
      prompt: [P] tokens, at least one.
      reward: pure function of tokens [B, T], whose rows hold anything beyond their
        length, and lengths [B], to rewards [B]; traced, and called with a batch for
        each round. Parameters in a `jax.tree_util.Partial` are data.
      num_samples: N.
      config: how to speculate; a tree of its own, not "auto".
      max_new_tokens: length cap.
      eos_id: tokens that end a text; the target's own if None.
      options: sampling options, in place of the config's.
      kept: share that goes on at each look, above 0; 1 is best-of-N without rejection,
        whose rewards are seen all the same.
      first_length: tokens before the first look; an eighth of the cap if None.
      speculate_up_to: rounds of more rows are decoded without drafts: a large batch
        has nothing to spare for them. 2 if None, as `benchmarks/best_of_n.py
        --speed` found on a CPU.

    Returns:
      A `BestOfN`.

    Raises:
      TypeError, ValueError: as `generate` does; a `kept` outside (0, 1], a reward that
        is no function or gives another shape, and rewards that are NaN (text and round
        are named; under `jit` such texts rank last).
    """
    count = as_integer("num_samples", num_samples, 1)
    prompts, lengths = _rows_of(prompt, count)
    config = SpeculativeConfig() if config is None else config
    if isinstance(config, SpeculativeConfig) and config.tree == AUTO:
        raise ValueError(
            'tree: "auto" is chosen for one batch size, and rounds have several; give '
            "a tree such as `tree.chain(5)`"
        )
    program = as_program(
        key,
        target,
        draft,
        prompts,
        lengths,
        config,
        max_new_tokens,
        eos_id,
        options,
    )
    most = SPECULATE_UP_TO if speculate_up_to is None else speculate_up_to
    most = as_integer("speculate_up_to", most, 0)
    if program.static["config"].token_tree.depth == 0:
        most = 0
    schedule = rounds_of(count, program.room, kept, first_length, most)
    reward = _as_reward(reward, program.static["room"], schedule)
    standing = run_rounds(*program.arrays, reward, schedule=schedule, **program.static)
    last = standing.rewards[:, -1]
    best = ranking(last, standing.failed | ~standing.complete)[0]
    result = BestOfN(*standing, best)
    result = result._replace(tokens=result.tokens[:, : program.room])
    if is_concrete(result.rewards):
        _check_rewards(np.asarray(result.rewards))
    return result


def rounds_of(
    num_samples: int,
    max_new_tokens: int,
    kept: float = 0.5,
    first_length: int | None = None,
    speculate_up_to: int = 0,
) -> tuple[Round, ...]:
    """The rounds: rows fall by the share that is kept, lengths double up to the cap.

    Raises:
      ValueError: `kept` outside (0, 1], a first length that is no positive integer.
    """
    share = as_number("kept", kept)
    if not 0 < share <= 1:
        raise ValueError(f"kept: must lie in (0, 1], got {share}")
    if first_length is None:
        first_length = max(1, max_new_tokens // 8)
    rows, length = num_samples, as_integer("first_length", first_length, 1)
    rounds = []
    while True:
        length = min(length, max_new_tokens)
        rounds.append(Round(rows, length, rows <= speculate_up_to))
        if length == max_new_tokens:
            return tuple(rounds)
        # Less a rounding error of the product.
        rows, length = max(1, math.ceil(rows * share - 1e-9)), 2 * length


def _rows_of(prompt: Array, count: int) -> tuple[Array, Array]:
    """The prompt [P] as rows [N, P], and their lengths."""
    tokens = as_array(prompt, "prompt")
    if tokens.ndim != 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            "prompt: expected integers of shape [P], one prompt, got "
            f"{tokens.dtype} {tokens.shape}"
        )
    if not tokens.size:
        raise ValueError("prompt: empty; a prompt has at least one token")
    xp = jnp if isinstance(tokens, jax.Array) else np
    rows = xp.broadcast_to(tokens, (count, len(tokens)))
    return rows, np.full(count, len(tokens), np.int32)


def _as_reward(
    reward: Reward, room: int, schedule: tuple[Round, ...]
) -> jax.tree_util.Partial:
    """A reward as an argument of the program; an error unless it gives [B] numbers."""
    if not callable(reward):
        raise wrong_kind(
            "reward", "a function of tokens [B, T] and lengths [B]", reward
        )
    for rows in sorted({this.rows for this in schedule}):
        shapes = (
            jax.ShapeDtypeStruct((rows, room), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
        )
        found = jax.eval_shape(reward, *shapes)
        if getattr(found, "shape", None) != (rows,) or not (
            jnp.issubdtype(found.dtype, jnp.floating)
            or jnp.issubdtype(found.dtype, jnp.integer)
        ):
            raise ValueError(
                f"reward: must give one real number for each of {rows} texts, shape "
                f"[{rows}], got {found}"
            )
    partial = jax.tree_util.Partial
    return reward if isinstance(reward, partial) else partial(reward)


def _check_rewards(rewards: np.ndarray) -> None:
    """ValueError that names the first NaN of `rewards [N, R]`."""
    texts, rounds = np.nonzero(np.isnan(rewards).any(axis=1))[0], rewards.shape[1]
    if texts.size:
        text = int(texts[0])
        index = int(np.isnan(rewards[text]).argmax())
        raise ValueError(
            f"reward: NaN for text {text} after round {index + 1} of {rounds} (and "
            f"{texts.size - 1} more texts); a reward must be a number"
        )
