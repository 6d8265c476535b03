"""Importance-weighted multi-draft selection (Khisti et al., arXiv 2410.18234)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Decision
from globalres_jax.draft_laws import IID, DraftLaw, Independent
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.sums import mass_beyond
from globalres_jax.transforms import normalized_residual
from globalres_jax.verifiers.rule import (
    Rule,
    accept_probability,
    check_most_drafts,
    rejected,
)

_SWEEPS = 30


class Match(NamedTuple):
    """The winner so far against the next draft.

    Attributes:
      rank: [k] place of each token; where no odds are known the first one wins.
      place: [k] index among the tokens with odds, s for the others.
      log_odds: [s] of these tokens: i beats j with probability sigmoid(a_i - a_j).
    """

    rank: Array
    place: Array
    log_odds: Array


class Tournament(NamedTuple):
    """All matches of up to n drafts, on the law's tokens.

    Attributes:
      matches: `Match`, stacked [n - 1].
      pick: [k] law of the winner among the drafts that there are.
    """

    matches: Match
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

    def check(self, law: DraftLaw) -> None:
        """Raises TypeError for another law, ValueError if n has no known bound."""
        super().check(law)
        check_most_drafts(self, law, "plays a match for each draft")

    def prepare(self, p: Array, law: DraftLaw) -> Tournament:
        """Plans the matches of the most drafts; the winner of those played counts."""
        size = min(self.size, len(law.first))
        wanted, most = law.take(p), law.max_drafts
        rows = jnp.broadcast_to(law.token_probs, (most, *law.first.shape))

        def play(winner: Array, following: Array):
            match, winner = _match(wanted, (winner, following), size)
            return winner, (match, winner)

        _, (matches, winners) = jax.lax.scan(play, rows[0], rows[1:])
        picks = jnp.concatenate([rows[:1], winners])
        return Tournament(matches, picks[law.num_drafts - 1])

    def resolve(
        self, plan: Tournament, p: Array, law: DraftLaw, draft_tokens: Array
    ) -> Decision:
        """Chance of each slot to win, times that of its token to be accepted."""
        slots = draft_tokens.shape[0]
        # Those in use first, in their order: the j-th one plays match j.
        order = jnp.argsort(draft_tokens < 0, stable=True)
        tokens = draft_tokens[order]

        def play(wins: Array, slot):
            match, j = slot
            stays = _beats(match, law, tokens, tokens[j])
            stays = jnp.where(tokens[j] >= 0, stays, 1)
            new = jnp.sum(wins * (1 - stays))
            return (wins * stays).at[j].set(new), None

        count = min(law.max_drafts, slots)
        matches = jax.tree.map(lambda x: x[: count - 1], plan.matches)
        first = (jnp.arange(slots) == 0).astype(plan.pick.dtype)
        wins, _ = jax.lax.scan(play, first, (matches, jnp.arange(1, count)))
        wins = jnp.zeros_like(wins).at[order].set(wins)
        pick = law.lookup(plan.pick, draft_tokens)
        accept = wins * accept_probability(p[draft_tokens], pick)
        residual = normalized_residual(jnp.maximum(p - law.spread(plan.pick), 0), p)
        return Decision(accept, rejected(accept) * residual)

    def acceptance_rate(self, p: Array, law: DraftLaw) -> Array:
        """sum_i min(beta_i, p_i): []."""
        return jnp.sum(jnp.minimum(self.prepare(p, law).pick, law.take(p)))


def _match(p: Array, laws: tuple[Array, Array], size: int) -> tuple[Match, Array]:
    """A match, and the law of its winner [k].

    Args:
      p: [k] target probabilities of the law's tokens.
      laws: [k] of the winner so far, and of the next draft.
      size: number of tokens with odds.
    """
    first, second = laws
    mean = 0.5 * (first + second)
    score = quotient(p, mean)
    order = jnp.argsort(-score)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    # By order alone: i wins against every token behind it, and against itself.
    after_first, after_second = (mass_beyond(q[order])[1:] for q in laws)
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
        return jnp.clip(
            log_odds + jnp.clip(jnp.log(wanted) - jnp.log(won), -2, 2), -30, 30
        )

    start = jnp.log(jnp.maximum(score[tokens], 1e-12))
    log_odds = jax.lax.fori_loop(0, _SWEEPS, sweep, jnp.clip(start, -30, 30))
    pick = by_order.at[tokens].set(winners(log_odds))
    return Match(rank, place, log_odds), pick


def _beats(match: Match, law: DraftLaw, tokens: Array, other: Array) -> Array:
    """[n] probability that each of `tokens [n]` wins against `other []`."""
    size = match.log_odds.shape[0]
    log_odds = jnp.append(match.log_odds, 0)
    place, rank = (law.lookup(x, tokens) for x in (match.place, match.rank))
    theirs, their_rank = (law.lookup(x, other[None]) for x in (match.place, match.rank))
    known = (place < size) & (theirs < size)
    odds = jax.nn.sigmoid(log_odds[place] - log_odds[theirs])
    return jnp.where(known & (tokens != other), odds, rank <= their_rank)
