"""Importance-weighted multi-draft selection (Khisti et al., arXiv 2410.18234)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw, Independent
from globalres_jax.numerics.sums import mass_beyond
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import Rule, accept_probability, first_law

_SWEEPS = 30


class Stage(NamedTuple):
    """One match of the tournament: the winner so far against the next draft.

    Attributes:
      rank: [V] place of each token; where no odds are known the first one wins.
      place: [V] index among the tokens with odds, s for the others.
      log_odds: [s] of these tokens: i beats j with probability sigmoid(a_i - a_j).
      pick: [V] law of the winner.
    """

    rank: Array
    place: Array
    log_odds: Array
    pick: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Khisti(Rule):
    """Select one of the drafts, then single-draft sampling against its law.

    Two drafts are matched: inside the `size` tokens that lack most, by odds; else the
    token with the higher p / (mean q) wins. More drafts play a tournament, the winner
    so far against the next. The law beta of the winner is summed exactly, so that
    min(1, p / beta) and the residual (p - beta)_+ are lossless for any odds.

    The paper finds the match probabilities by a linear program over pairs. That is
    not a jittable computation of this size, so they take its importance-weighted
    form here, odds w_i / w_j, with the weights tuned by a few fixed-point sweeps
    towards beta = p on those tokens.

    Attributes:
      size: number of tokens with odds (the paper's truncation s).
    """

    size: int = 15

    serves = (IID, Independent)
    serves_trees = False

    def prepare(self, p: Array, law: DraftLaw) -> tuple[Stage, ...]:
        """One stage for every draft after the first."""
        probs = jnp.atleast_2d(law.probs)
        tokens = law.support()
        if tokens is None:
            tokens = jnp.arange(law.vocab_size)
        # Tokens beyond a promised support come last, and the first of two wins.
        beyond = probs.at[:, tokens].set(0)
        first, first_beyond = probs[0, tokens], beyond[0]
        size = min(self.size, len(tokens))
        behind_all = jnp.full(law.vocab_size, law.vocab_size)
        stages = []
        for j in range(1, law.num_drafts):
            j = min(j, len(probs) - 1)
            left = jnp.sum(first_beyond), jnp.sum(beyond[j])
            stage = _match(p[tokens], (first, probs[j, tokens]), left, size)
            first, first_beyond = stage.pick, first_beyond * left[1]
            stages.append(
                stage._replace(
                    rank=behind_all.at[tokens].set(stage.rank),
                    place=jnp.full(law.vocab_size, size).at[tokens].set(stage.place),
                    pick=first_beyond.at[tokens].set(first),
                )
            )
        return tuple(stages)

    def resolve(
        self, plan: tuple[Stage, ...], p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Chance of each slot to win, times that of its token to be accepted."""
        wins = jnp.zeros(draft_tokens.shape, p.dtype).at[0].set(1)
        for j, stage in enumerate(plan, start=1):
            stays = _beats(stage, draft_tokens, draft_tokens[j])
            new = jnp.sum(wins * (1 - stays))
            wins = (wins * stays).at[j].set(new)
        pick = plan[-1].pick if plan else first_law(law)
        accept = wins * accept_probability(p[draft_tokens], pick[draft_tokens])
        residual = normalized_residual(jnp.maximum(p - pick, 0), p)
        return Decision(accept, (1 - jnp.sum(accept)) * residual)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(beta_i, p_i): []."""
        plan = self.prepare(p, law)
        return jnp.sum(jnp.minimum(plan[-1].pick if plan else first_law(law), p))


def _match(
    p: Array, laws: tuple[Array, Array], left: tuple[Array, Array], size: int
) -> Stage:
    """The stage for a winner from one law [m] and a draft from the other.

    Args:
      p: [m] target probabilities of the tokens that are ranked.
      laws: [m] of the winner so far, and of the next draft.
      left: [] mass of each on tokens behind all of these.
      size: number of tokens with odds.
    """
    first, second = laws
    mean = 0.5 * (first + second)
    score = jnp.where(mean > 0, p / jnp.where(mean > 0, mean, 1), 0)
    order = jnp.argsort(-score)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    # By order alone: i wins against every token behind it, and against itself.
    after_first, after_second = (
        mass_beyond(q[order])[1:] + rest for q, rest in zip(laws, left, strict=True)
    )
    both = first[order] * second[order]
    won = first[order] * after_second + second[order] * after_first + both
    by_order = jnp.zeros_like(p).at[order].set(won)

    tokens = jax.lax.top_k(p - first * second, size)[1]
    place = jnp.full(p.shape, size).at[tokens].set(jnp.arange(size))
    q1, q2, ahead = first[tokens], second[tokens], rank[tokens]
    pairs = q1[:, None] * q2[None] + q2[:, None] * q1[None]
    pairs = pairs * (1 - jnp.eye(size, dtype=p.dtype))
    fixed = by_order[tokens] - jnp.sum(pairs * (ahead[:, None] < ahead[None]), axis=1)

    def winners(log_odds: Array) -> Array:
        odds = jax.nn.sigmoid(log_odds[:, None] - log_odds[None])
        return fixed + jnp.sum(pairs * odds, axis=1)

    def sweep(_, log_odds: Array) -> Array:
        tiny = jnp.finfo(p.dtype).tiny
        wanted, won = jnp.maximum(p[tokens], tiny), jnp.maximum(winners(log_odds), tiny)
        return jnp.clip(log_odds + jnp.clip(jnp.log(wanted / won), -2, 2), -30, 30)

    start = jnp.log(jnp.maximum(score[tokens], 1e-12))
    log_odds = jax.lax.fori_loop(0, _SWEEPS, sweep, jnp.clip(start, -30, 30))
    pick = by_order.at[tokens].set(winners(log_odds))
    return Stage(rank, place, log_odds, pick)


def _beats(stage: Stage, tokens: Array, other: Array) -> Array:
    """[n] probability that each of `tokens [n]` wins against `other []`."""
    size = stage.log_odds.shape[0]
    log_odds = jnp.append(stage.log_odds, 0)
    mine, theirs = stage.place[tokens], stage.place[other]
    known = (mine < size) & (theirs < size)
    odds = jax.nn.sigmoid(log_odds[mine] - log_odds[theirs])
    ahead = stage.rank[tokens] <= stage.rank[other]
    return jnp.where(known & (tokens != other), odds, ahead)
