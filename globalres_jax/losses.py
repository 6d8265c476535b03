"""Losses that fit a draft to its target: divergences, acceptance, accepted length.

Each is a function of target rows and draft logits and gives one number a row, to be
averaged by the caller. Gradients are finite everywhere; `min(p, q)` moves with q where
the two are equal.

Target rows are either probabilities p [..., V] or, as teachers are stored, the k
likeliest tokens of each row, a `TopTarget`. The draft's are logits [..., V], of which
log-probabilities are one kind; a token that the draft leaves out has minus infinity.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from globalres_jax.base import Array, DraftLaw, TreeVerifier
from globalres_jax.draft_laws import IID
from globalres_jax.transport.plan import optimal_acceptance_rate
from globalres_jax.tree import TokenTree
from globalres_jax.tree_verifiers import LayerResolution, expected_accepted

#: Stands for the logarithm of zero: what can never be drafted, or never emitted.
LOG_OF_ZERO = -100.0
#: Acceptance rates below this have the logarithm of this, and no gradient.
_LEAST_RATE = 1e-30

#: `law(probs [V], num_drafts, max_support=...)`.
LawMaker = Callable[..., DraftLaw]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopTarget:
    """The k likeliest tokens of target rows; what the others have is one more outcome.

    Divergences count all other tokens as one outcome, and so are lower bounds of those
    of whole rows. Acceptance counts it as never accepted: a lower bound, too.

    Attributes:
      tokens: [..., k] different tokens.
      probs: [..., k] their probabilities, at most 1 together.
    """

    tokens: Array
    probs: Array

    @property
    def rest(self) -> Array:
        """[...] probability of all other tokens."""
        return jnp.maximum(1 - jnp.sum(self.probs, axis=-1), 0)

    def dense(self, vocab_size: int) -> Array:
        """[..., V] the rows, zero for all other tokens."""
        shape = *self.probs.shape[:-1], vocab_size
        rows = jnp.zeros((self.rest.size, vocab_size), self.probs.dtype)
        tokens = self.tokens.reshape(self.rest.size, -1)
        probs = self.probs.reshape(tokens.shape)
        place = jnp.arange(self.rest.size)[:, None]
        return rows.at[place, tokens].set(probs).reshape(shape)


def stored_target(
    tokens: Array, logits: Array, log_total: Array | None = None
) -> TopTarget:
    """Target rows from stored teacher logits.

    Args:
      tokens: [..., k] different tokens.
      logits: [..., k] the teacher's logits of these.
      log_total: [...] log of the sum of exp over the teacher's whole row. The tokens
        then keep their probabilities, and what the others have is known. If None, what
        the others had is dropped: the k tokens have all probability.

    Raises:
      ValueError: shapes do not fit.
    """
    tokens, logits = jnp.asarray(tokens), jnp.asarray(logits)
    if tokens.shape != logits.shape:
        raise ValueError(
            f"tokens: expected the shape {logits.shape} of logits, got {tokens.shape}"
        )
    if log_total is None:
        return TopTarget(tokens, jax.nn.softmax(logits))
    log_total = jnp.asarray(log_total)
    if log_total.shape != logits.shape[:-1]:
        raise ValueError(
            f"log_total: expected shape {logits.shape[:-1]}, got {log_total.shape}"
        )
    return TopTarget(tokens, jnp.exp(logits - log_total[..., None]))


def kl_divergence(target: Array | TopTarget, draft: Array) -> Array:
    """KL(p || q) in nats: [...]. Tokens left out by the draft have log q of -100."""
    p, log_p, log_q = _outcomes(target, draft)
    return jnp.sum(p * (log_p - log_q), axis=-1)


def reverse_kl_divergence(target: Array | TopTarget, draft: Array) -> Array:
    """KL(q || p) in nats: [...]. Tokens that p rules out have log p of -100."""
    _, log_p, log_q = _outcomes(target, draft)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def jensen_shannon(target: Array | TopTarget, draft: Array) -> Array:
    """Half of KL(p || m) + KL(q || m), m = (p + q) / 2, in nats: [...]."""
    p, log_p, log_q = _outcomes(target, draft)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(p.dtype)
    both = p * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)
    return 0.5 * jnp.sum(both, axis=-1)


def acceptance_rate(target: Array | TopTarget, draft: Array) -> Array:
    """sum_i min(p_i, q_i), what one draft accepts: [...]. No loss, but near them."""
    q = jax.nn.softmax(draft)
    if isinstance(target, TopTarget):
        p, q = target.probs, jnp.take_along_axis(q, target.tokens, axis=-1)
    else:
        p = target
    return jnp.sum(jnp.where(q <= p, q, p), axis=-1)


def total_variation(target: Array | TopTarget, draft: Array) -> Array:
    """1 - sum_i min(p_i, q_i), what one draft does not accept: [...]."""
    return 1 - acceptance_rate(target, draft)


def lk(target: Array | TopTarget, draft: Array) -> Array:
    """-log sum_i min(p_i, q_i), of one draft (Samarin et al., arXiv 2602.23881)."""
    return _negative_log(acceptance_rate(target, draft))


def negative_log_optimum(
    target: Array | TopTarget,
    draft: Array,
    num_drafts: int,
    law: LawMaker = IID,
    max_support: int | None = None,
) -> Array:
    """-log alpha*_n: of what the best lossless rule accepts of n drafts: [...].

    alpha*_n = p(H) + 1 - Q(H) for the best set H, which holds still while p and q move
    (envelope theorem). With n = 1 this is `lk`, and so is its gradient; where p_i = q_i
    both are supergradients of the rate, and may be different ones.

    Args:
      target: [..., V] rows.
      draft: [..., V] logits.
      num_drafts: n.
      law: how the drafts are drawn from q, `law(probs, num_drafts, max_support=...)`:
        `IID`, `WithoutReplacement`, `TopPlusSample`.
      max_support: drafts come from so many likeliest tokens of the draft; others have
        no gradient.
    """

    def loss(p: Array, logits: Array) -> Array:
        drafts = law(jax.nn.softmax(logits), num_drafts, max_support=max_support)
        return _negative_log(optimal_acceptance_rate(p, drafts))

    return _by_rows(loss, _dense(target, draft), draft)


def lk_mixture(
    target: Array | TopTarget,
    draft: Array,
    decay: float = 3.0,
    near: Callable[..., Array] = total_variation,
    far: Callable[..., Array] = kl_divergence,
) -> Array:
    """weight * far + (1 - weight) * near, weight = exp(-decay alpha): [...].

    While the draft is far from its target the loss is mostly `far`, whose gradient does
    not vanish there, and more and more `near` as the acceptance rate alpha of one draft
    grows. No gradient flows into the weight. (Samarin et al., arXiv 2602.23881: KL and
    total variation, decay 3.)

    Args:
      target: [..., V] rows.
      draft: [..., V] logits.
      decay: 0 is `far` alone.
      near: a loss of this module.
      far: another one.
    """
    alpha = jax.lax.stop_gradient(acceptance_rate(target, draft))
    weight = jnp.exp(-decay * alpha)
    return weight * far(target, draft) + (1 - weight) * near(target, draft)


def negative_accepted_length(
    tree: TokenTree,
    tokens: Array,
    target: Array | TopTarget,
    draft: Array,
    rule: TreeVerifier | None = None,
    law: LawMaker = IID,
    max_support: int | None = None,
) -> Array:
    """Minus the expected number of accepted drafts of sampled trees: [].

    Its gradient is that of the expectation over the trees, too, which the draft's
    logits shape twice: by what the rule makes of a drawn tree, and by which trees are
    drawn (the score function, REINFORCE). The mean of the other trees is the baseline
    of each, so that all should have the same root, and one alone has the baseline 0.

    Args:
      tree: shape of the trees.
      tokens: [S, N] the tokens of S trees, drawn from the draft and the law below.
      target: [S, N, V] rows after each node.
      draft: [S, N, V] logits after each node; those of leaves are not read.
      rule: `LayerResolution()` if None, or another rule that `expected_accepted` can
        differentiate.
      law: how the children of a node are drawn.
      max_support: drafts come from so many likeliest tokens.
    """
    rule = LayerResolution() if rule is None else rule
    length = functools.partial(_length, tree, rule, law, max_support)
    lengths, log_chances = jax.vmap(length)(tokens, _dense(target, draft), draft)
    count = len(lengths)
    others = (jnp.sum(lengths) - lengths) / max(count - 1, 1)
    ahead = jax.lax.stop_gradient(lengths - others)
    drawn = log_chances - jax.lax.stop_gradient(log_chances)
    return -jnp.mean(lengths + ahead * drawn)


def _length(
    tree: TokenTree,
    rule: TreeVerifier,
    law: LawMaker,
    max_support: int | None,
    tokens: Array,
    p: Array,
    logits: Array,
) -> tuple[Array, Array]:
    """Expected accepted length of one tree [], and the log-chance that it is drawn."""
    q = jax.nn.softmax(logits)
    laws, log_chance = [], jnp.zeros((), p.dtype)
    for group in tree.groups:
        make = functools.partial(
            law, num_drafts=group.num_children, max_support=max_support
        )
        stacked = jax.vmap(lambda row, make=make: make(row))(q[group.nodes])
        chance = jax.vmap(lambda one, drawn: one.draft_probability(drawn))
        chances = chance(stacked, tokens[group.children])
        log_chance -= jnp.sum(_negative_log(chances))
        laws.append(stacked)
    return expected_accepted(rule, tree, tokens, p, tuple(laws)), log_chance


def _outcomes(target: Array | TopTarget, draft: Array) -> tuple[Array, Array, Array]:
    """p, log p and log q [..., m] of V outcomes, or of k tokens and of all others."""
    log_q = jax.nn.log_softmax(draft)
    p = target
    if isinstance(target, TopTarget):
        p = jnp.concatenate([target.probs, target.rest[..., None]], axis=-1)
        log_q = jnp.take_along_axis(log_q, target.tokens, axis=-1)
        rest = 1 - jnp.sum(jnp.exp(log_q), axis=-1, keepdims=True)
        eps = jnp.finfo(rest.dtype).eps
        log_q = jnp.concatenate([log_q, jnp.log(jnp.maximum(rest, eps))], axis=-1)
    positive = p > 0
    log_p = jnp.where(positive, jnp.log(jnp.where(positive, p, 1)), LOG_OF_ZERO)
    return p, log_p, jnp.where(jnp.isneginf(log_q), LOG_OF_ZERO, log_q)


def _dense(target: Array | TopTarget, draft: Array) -> Array:
    """[..., V] target rows; what is not known of them is lacking."""
    if isinstance(target, TopTarget):
        return target.dense(draft.shape[-1])
    return target


def _negative_log(rate: Array) -> Array:
    return -jnp.log(jnp.maximum(rate, _LEAST_RATE))


def _by_rows(loss: Callable, p: Array, logits: Array) -> Array:
    """`loss` of each row of [..., V]: [...]."""
    shape = logits.shape[:-1]
    rows = p.reshape(-1, p.shape[-1]), logits.reshape(-1, logits.shape[-1])
    return jax.vmap(loss)(*rows).reshape(shape)
