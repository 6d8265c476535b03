"""What a user writes from the protocols alone works in `generate`, exactly."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import globalres_jax as gr
from globalres_jax.base import (
    Decision,
    Drafter,
    Emitted,
    Proposal,
    TreeDecision,
    Walk,
)

ROWS = 6000
TARGET, DRAFT = (
    np.random.default_rng(i).dirichlet(np.full(3, 0.7), 3).astype(np.float32)
    for i in (0, 1)
)


class Count(NamedTuple):
    """A cache that holds nothing and knows how much."""

    length: jax.Array
    room: jax.Array  # [S], for its size

    @property
    def capacity(self):
        return self.room.shape[0]

    def with_length(self, length):
        return Count(length, self.room)

    def keep_path(self, base, nodes, count):
        return Count(base + count, self.room)


def new_count(batch, length):
    return Count(jnp.zeros(batch, jnp.int32), jnp.zeros(length, bool))


def last_token_model(params, tokens, positions, cache, mask):
    assert mask.shape == (*tokens.shape, cache.capacity)
    assert positions.shape == tokens.shape
    return params[tokens], cache.with_length(cache.length + tokens.shape[1])


def model(table):
    return gr.Model(jnp.log(table), last_token_model, new_count, 3)


@dataclasses.dataclass(frozen=True)
class AcceptNothing:
    """A rule: drafts are ignored, the token comes from p."""

    def check(self, law):
        pass

    def prepare(self, p, law):
        return ()

    def resolve(self, plan, p, law, draft_tokens):
        return Decision(jnp.zeros(draft_tokens.shape, p.dtype), p)

    def decide(self, p, law, draft_tokens):
        return self.resolve((), p, law, draft_tokens)


@dataclasses.dataclass(frozen=True)
class LookDownFirstPath:
    """A rule for trees: sample from p, go on while it is the first child."""

    def check(self, tree, laws):
        pass

    def law(self, tree, tokens, p, laws):
        first = [int(np.flatnonzero(tree.parents == v)[0]) for v in (0, 1)]
        chance = [p[v, tokens[child]] for v, child in zip((0, 1), first, strict=True)]
        reach = jnp.array([1, chance[0], 0, chance[0] * chance[1], 0])
        rest = p.at[0, tokens[first[0]]].set(0).at[1, tokens[first[1]]].set(0)
        total = rest.sum(1)
        return TreeDecision(reach * total, rest / total[:, None])

    def walk(self, key, tree, tokens, p, laws):
        del laws
        keys = jax.random.split(key, 3)
        rows = jnp.log(p[jnp.array([0, 1, 3])])
        drawn = jax.vmap(jax.random.categorical)(keys, rows)
        one = drawn[0] == tokens[1]
        two = one & (drawn[1] == tokens[3])
        nodes = jnp.stack([jnp.where(one, 1, 0), jnp.where(two, 3, 0)])
        token = jnp.where(two, drawn[2], jnp.where(one, drawn[1], drawn[0]))
        return Walk(nodes, one.astype(jnp.int32) + two, token)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NextNumbers:
    """A drafter: after token t come t + 1 and t + 2, for certain."""

    def check(self, tree, vocab_size):
        pass

    def start(self, prompts, lengths, capacity):
        return jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]

    def propose(self, keys, state, tree, policy):
        tokens, laws = [state], []
        for node in range(1, tree.num_nodes):
            rank = np.flatnonzero(tree.parents == tree.parents[node]).tolist()
            parent = tokens[tree.parents[node]]
            tokens.append((parent + 1 + rank.index(node)) % policy.vocab_size)
        tokens = jnp.stack(tokens, axis=1)
        for group in tree.groups:
            drawn = tokens[:, group.children]
            make = jax.vmap(jax.vmap(lambda x: gr.Deterministic(x, 3)))
            laws.append(make(drawn))
        return Proposal(tokens, tuple(laws)), state

    def commit(self, state, emitted: Emitted):
        last = jnp.maximum(emitted.count - 1, 0)[:, None]
        token = jnp.take_along_axis(emitted.tokens, last, axis=1)[:, 0]
        return jnp.where(emitted.count > 0, token, state)


def p_value(draft, config) -> float:
    """Chi-square of the first three tokens of `ROWS` rows against the chain's law."""
    prompts = jnp.broadcast_to(jnp.array([[0, 1]]), (ROWS, 2))
    lengths = jnp.full(ROWS, 2)
    result = gr.generate(
        jax.random.key(3), model(TARGET), draft, prompts, lengths, config, 3
    )
    seen = np.bincount(np.asarray(result.tokens) @ [9, 3, 1], minlength=27)
    table = TARGET.astype(np.float64)
    table /= table.sum(1, keepdims=True)
    law = np.einsum("a,ab,bc->abc", table[1], table, table).reshape(-1)
    return chisquare(seen, ROWS * law).pvalue


SHAPE = {"tree": gr.tree.branching((2, 1)), "measure_optimum": False}


@pytest.mark.parametrize("rule", [AcceptNothing(), LookDownFirstPath()])
def test_rules_from_the_protocol(rule):
    config = gr.SpeculativeConfig(verifier=rule, **SHAPE)
    assert p_value(model(DRAFT), config) > 1e-4


def test_a_drafter_from_the_protocol():
    rule = gr.verifiers.TargetSample()
    config = gr.SpeculativeConfig(verifier=rule, **SHAPE)
    drafter: Drafter = NextNumbers()
    assert p_value(drafter, config) > 1e-4


def test_negative_control_a_rule_that_is_not_lossless():
    @dataclasses.dataclass(frozen=True)
    class TakesTheDraft(AcceptNothing):
        def resolve(self, plan, p, law, draft_tokens):
            first = jnp.arange(len(draft_tokens)) == jnp.argmax(draft_tokens >= 0)
            return Decision(first.astype(p.dtype), jnp.zeros_like(p))

    config = gr.SpeculativeConfig(verifier=TakesTheDraft(), **SHAPE)
    assert p_value(model(DRAFT), config) < 1e-9
