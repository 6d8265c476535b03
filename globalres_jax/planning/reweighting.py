"""What other draws would have had accepted, from the trees that were drawn.

Of one path x_1, ..., x_D drawn from q_1, ..., q_D, what block verification of drafts
from other laws q' accepts is on average

    sum_d  prod_{i < d} q'_i(x_i) / q_i(x_i)  sum_x min(w_{d-1} p_d(x), q'_d(x)),
    w_d = min(1, w_{d-1} p_d(x_d) / q'_d(x_d)),

so that laws on fewer tokens and at other temperatures are compared on the same rows,
and neither model runs again.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, Proposal
from globalres_jax.decoding import scoring, step
from globalres_jax.decoding.options import FilteredRows
from globalres_jax.decoding.penalties import TextCounts
from globalres_jax.decoding.state import Request
from globalres_jax.draft_laws import BY_NAME, IID
from globalres_jax.numerics.quotient import quotient
from globalres_jax.numerics.rows import map_rows, on_platform
from globalres_jax.numerics.sums import blockwise_sum
from globalres_jax.transport.plan import optimal_acceptance_rate


def redrawn(q: Array, top_k: Array, temperature: Array) -> Array:
    """The law of the `top_k []` likeliest tokens at `temperature []` times q's own.

    Args:
      q: [..., k] laws. What `top_p` or `min_p` kept away at q's own temperature stays
        away at the other.
      top_k: tokens of the other law.
      temperature: times q's.
    """
    rank = jnp.argsort(jnp.argsort(-q, axis=-1), axis=-1)
    logits = jnp.where(q > 0, jnp.log(jnp.where(q > 0, q, 1)) / temperature, -jnp.inf)
    return jax.nn.softmax(jnp.where(rank < top_k, logits, -jnp.inf), axis=-1)


def added_if_redrawn(
    p: Array, q: Array, places: Array, top_k: Array, temperature: Array
) -> Array:
    """What each level would add to the drafts accepted, see the top: [D].

    Args:
      p: [D, k] the target at the tokens of each draft's law.
      q: [D, k] the law.
      places: [D] what was drawn.
      top_k: [] tokens of the other law.
      temperature: [] times q's.
    """

    def descend(carry: tuple[Array, Array], level: tuple[Array, Array, Array]):
        w, ratio = carry
        (p, q), place, other = level[0], level[1], level[2]
        added = ratio * blockwise_sum(jnp.minimum(w * p, other))
        w = jnp.minimum(1, quotient(w * p[place], other[place]))
        return (w, ratio * quotient(other[place], q[place])), added

    others, one = redrawn(q, top_k, temperature), jnp.ones((), q.dtype)
    return jax.lax.scan(descend, (one, one), ((p, q), places, others))[1]


@functools.partial(jax.jit, static_argnames="platform")
def look_closer(
    proposal: Proposal,
    logits: Array,
    counts: TextCounts | None,
    request: Request,
    top_ks: Array,
    temperatures: Array,
    platform: str | None,
) -> tuple[Array, Array, Array]:
    """`added_if_redrawn` of each row by A other ways; and p and q after the root.

    Args:
      proposal: one path for each row, of `IID` drafts.
      logits: the target's, as `parts.score` has them.
      counts: of the text, where options ask for them.
      request: what is asked for.
      top_ks: [A].
      temperatures: [A].
      platform: where the target lies.

    Returns:
      [B, A, D], [B, k] and [B, k].
    """

    def row(tokens, laws, options, logits, broken):
        rows = FilteredRows(logits, options, broken)
        p, q, places = [], [], []
        for level, stacked in enumerate(laws):
            law = jax.tree.map(lambda x: x[0], stacked)
            held = jnp.arange(law.vocab_size) if law.tokens is None else law.tokens
            p.append(law.take(rows[jnp.int32(level)]))
            q.append(law.first.astype(p[0].dtype))
            places.append(jnp.argmax(held == tokens[level + 1]))
        p, q, places = map(jnp.stack, (p, q, places))
        one = functools.partial(added_if_redrawn, p, q, places)
        return jax.vmap(one)(top_ks, temperatures), p[0], q[0]

    with on_platform(platform):
        turned = step.by_columns(request.target)
        rows = jnp.moveaxis(logits, 0, -1) if turned else logits
        asked = scoring.as_asked(rows, proposal.tokens, counts, request)
        arrays = proposal.tokens, proposal.laws, request.options
        return map_rows(row, *arrays, *asked)


def can_be_redrawn(proposal: Proposal) -> bool:
    """Whether it is one path of sampled drafts."""
    return all(isinstance(law, IID) for law in proposal.laws)


@functools.partial(jax.jit, static_argnames=("name", "num_drafts", "top_k"))
def first_level(
    p: Array, q: Array, temperature: Array, name: str, num_drafts: int, top_k: int
) -> Array:
    """Mean of the best that rules can accept of several drafts after the root: [].

    Args:
      p: [n, k] the target at the tokens of the laws.
      q: [n, k] the laws of one draft.
      temperature: [] times theirs.
      name: of the law of several.
      num_drafts: how many.
      top_k: tokens that they are drawn from.
    """
    order = jnp.argsort(-q, axis=1)[:, :top_k]
    p, q = (jnp.take_along_axis(rows, order, axis=1) for rows in (p, q))
    q = redrawn(q, top_k, temperature)

    def best(p: Array, q: Array) -> Array:
        return optimal_acceptance_rate(p, BY_NAME[name](q, num_drafts))

    return jnp.mean(jax.lax.map(lambda both: best(*both), (p, q)))
