"""Speculative rejection: who is kept, that texts are their own, and bad rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.decoding import best_of_n
from globalres_jax.decoding.best_of_n import rounds_of
from globalres_jax.decoding.rounds import Round, ranking

V, N, CAP, END = 6, 8, 16, 5


def model(seed):
    """A table in which few texts end early."""
    table = np.random.default_rng(seed).dirichlet(np.full(V, 0.9), V)
    table[:, END] *= 0.25
    return gr.testing.markov_model(
        jnp.asarray(table / table.sum(1, keepdims=True), jnp.float32)
    )


TARGET, DRAFT = model(0), model(1)
CONFIG = gr.SpeculativeConfig(
    num_drafts=1, draft_length=1, verifier=gr.verifiers.SingleDraft()
)
PROMPT = np.array([1, 2])


def reward(weights, late, tokens, lengths):
    """Mean weight of the tokens of a text; and `late` for one that is to turn out bad.

    Of texts that have ended the shorter is the better one.
    """
    inside = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
    worth = jnp.where(inside, weights[jnp.clip(tokens, 0, V - 1)], 0)
    ended = jnp.any(inside & (tokens == END), axis=1)
    hopes = jnp.where(ended, 0.5 - 0.01 * lengths, jnp.where(lengths < 16, 1.0, 0.0))
    return worth.sum(1) / lengths + late * hopes


def of_weights(*weights, late=0.0):
    """A reward whose parameters are data, so that tests share programs."""
    numbers = jnp.asarray(weights, jnp.float32), jnp.float32(late)
    return jax.tree_util.Partial(reward, *numbers)


WORTH = of_weights(0.1, 0.7, 0.2, 0.9, 0.4, 0.5)


def best(seed=0, worth=WORTH, draft=DRAFT, **changes):
    changes = {"first_length": 4, "speculate_up_to": 0, **changes}
    result = gr.best_of_n(
        jax.random.key(seed),
        TARGET,
        draft,
        PROMPT,
        worth,
        N,
        CONFIG,
        CAP,
        END,
        **changes,
    )
    return jax.tree.map(np.asarray, result)


def alone(draft, seed=0):
    """The same rows in `generate`, to the end."""
    rows = np.broadcast_to(PROMPT, (N, 2)), np.full(N, 2)
    key = jax.random.key(seed)
    result = gr.generate(key, TARGET, draft, *rows, CONFIG, CAP, END)
    return jax.tree.map(np.asarray, result)


def check_selection(result, schedule):
    """The largest rewards go on, of the rows that were there."""
    rewards, rounds = np.asarray(result.rewards), np.asarray(result.rounds)
    for index, following in enumerate(schedule[1:]):
        there = np.flatnonzero(rounds > index)
        kept = set(np.flatnonzero(rounds > index + 1).tolist())
        order = there[np.argsort(-rewards[there, index], kind="stable")]
        assert kept == set(order[: following.rows].tolist())
    complete = np.flatnonzero(result.complete)
    assert set(np.flatnonzero(rounds == len(schedule))) <= set(complete.tolist())
    assert int(result.best) == complete[rewards[complete, -1].argmax()]


def check_texts(result, schedule, whole, same):
    """Each text is what its row writes alone, for `same` tokens at least."""
    for row in range(N):
        count, last = int(result.lengths[row]), schedule[result.rounds[row] - 1]
        text = np.asarray(result.tokens[row])
        assert (text[count:] == CONFIG.pad_id).all()
        if not result.complete[row]:
            # A step may go on beyond the length, by as much as it accepts.
            assert last.length <= count <= last.length + last.speculates
        elif same == CAP:
            assert count == whole.lengths[row]
        count = min(count, same)
        np.testing.assert_array_equal(text[:count], whole.tokens[row, :count])
    wanted = jax.jit(WORTH)(result.tokens, result.lengths)
    np.testing.assert_allclose(result.rewards[:, -1], wanted, rtol=1e-5)
    best, count = result.best, result.lengths[result.best]
    np.testing.assert_array_equal(result.best_tokens, result.tokens[best, :count])


@pytest.mark.parametrize(
    ("rows", "first", "sizes"),
    [
        (N, 8, [8, 4]),
        (0, 4, [8, 4, 2]),
        (N, 4, [8, 4, 2]),
    ],
)
@pytest.mark.sweep
def test_the_best_go_on_with_their_own_texts(rows, first, sizes):
    schedule = rounds_of(N, CAP, 0.5, first, rows)
    assert [this.rows for this in schedule] == sizes
    for seed in (0, 1):
        whole = alone(DRAFT if rows else None, seed)
        result = best(seed, first_length=first, speculate_up_to=rows)
        check_selection(result, schedule)
        check_texts(result, schedule, whole, CAP)


#: A round without drafts, and one of four rows with them.
LATE = {"first_length": 8, "speculate_up_to": 4}


def test_drafts_for_the_last_rows_alone():
    """Up to there the texts are those of plain decoding, then they have its law."""
    schedule, whole = rounds_of(N, CAP, 0.5, 8, 4), alone(None)
    result = best(**LATE)
    check_selection(result, schedule)
    check_texts(result, schedule, whole, 8)
    # The drafter knows the whole text: of the target's own drafts all are accepted.
    own = best(worth=of_weights(0.1, 0.7, 0.2, 0.9, 0.4, -9), **LATE, draft=TARGET)
    last = np.asarray(own.complete) & (np.asarray(own.lengths) > 8)
    steps, lengths = np.asarray(own.steps)[last], np.asarray(own.lengths)[last]
    assert len(lengths) >= 2
    np.testing.assert_array_equal(steps, 8 + np.ceil((lengths - 8) / 2))


def test_a_text_that_ended_and_was_given_up_may_win():
    """Where what went on turns out worse than a short text that had ended."""
    won = 0
    for seed in range(8):
        result = best(seed, of_weights(*[0.0] * V, late=1.0), **LATE)
        complete = np.asarray(result.complete)
        shortest = np.asarray(result.lengths)[complete].min()
        assert result.complete[result.best] and result.lengths[result.best] == shortest
        worth = float(result.rewards[result.best, -1])
        assert worth == pytest.approx(0.5 - 0.01 * int(shortest))
        won += int(result.rounds[result.best]) == 1
    assert won >= 2


@pytest.mark.sweep
def test_without_rejection_it_is_best_of_n():
    result, whole = best(kept=1.0), alone(None)
    np.testing.assert_array_equal(result.tokens, whole.tokens)
    assert (np.asarray(result.rounds) == 3).all() and result.complete.all()
    assert int(result.best) == int(np.argmax(result.rewards[:, -1]))


def test_rewards_that_are_no_numbers(monkeypatch):
    """An error that says which; under jit, where none can be raised, they rank last."""
    spoiled = of_weights(0.1, 0.7, 0.2, np.nan, 0.4, 0.5)
    with pytest.raises(ValueError, match=r"reward: NaN for text \d after round 1 of 2"):
        best(0, spoiled, **LATE)
    monkeypatch.setattr(best_of_n, "_check_rewards", lambda rewards: None)
    traced = best(0, spoiled, **LATE)
    broken = np.isnan(np.asarray(traced.rewards[:, 0]))
    assert broken.any() and not broken.all()
    kept = np.asarray(traced.rounds) > 1
    assert kept.sum() == 4 and broken[kept].sum() == max(0, 4 - (~broken).sum())
    assert not np.isnan(traced.rewards[traced.best, -1])


def test_ranking():
    rewards = jnp.array([1.0, jnp.nan, -jnp.inf, 3.0, 3.0, 9.0])
    broken = jnp.array([False, False, False, False, False, True])
    assert ranking(rewards, broken)[:4].tolist() == [3, 4, 0, 2]


def test_rounds():
    assert rounds_of(10, 100, 0.3, 30, 1) == (
        Round(10, 30, False),
        Round(3, 60, False),
        Round(1, 100, True),
    )
    assert [this.length for this in rounds_of(4, 64)] == [8, 16, 32, 64]
    assert rounds_of(5, 3, 1.0, 7, 5) == (Round(5, 3, True),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": 0}, r"kept: must lie in \(0, 1\], got 0"),
        ({"kept": "all"}, "kept: expected a number"),
        ({"first_length": 0}, "first_length: must be at least 1"),
        ({"speculate_up_to": -1}, "speculate_up_to: must be 0 or more"),
        ({"reward": 3}, "reward: expected a function of tokens"),
        ({"reward": lambda t, n: t}, r"reward: must give one real number for each of"),
        ({"reward": lambda t, n: n > 1}, "reward: must give one real number"),
        ({"num_samples": 0}, "num_samples: must be at least 1"),
        ({"prompt": np.ones((2, 2), int)}, r"prompt: expected integers of shape \[P\]"),
        ({"prompt": np.array([], int)}, "prompt: empty"),
        ({"prompt": [9]}, r"prompts: tokens must lie in \[0, 6\)"),
        ({"config": gr.SpeculativeConfig(tree="auto")}, 'tree: "auto" is chosen for'),
        ({"config": 3}, "config: expected a SpeculativeConfig"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be at least 1"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {
        "key": jax.random.key(0),
        "target": TARGET,
        "draft": DRAFT,
        "prompt": PROMPT,
        "reward": WORTH,
        "config": CONFIG,
        **changes,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        gr.best_of_n(**arguments)
