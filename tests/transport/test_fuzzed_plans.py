"""Plans of hostile problems: never lossy, and never a certificate that is false."""

import numpy as np
import pytest
from fuzzed import LAWS, SIZE, Problems, failures, problems, solved

EVERY = [(name, n) for name, numbers in LAWS.items() for n in numbers]


def examples(rows) -> Problems:
    """Pairs (p, q) of fewer tokens, padded with one that nobody wants or drafts."""
    padded = np.zeros((len(rows), 2, SIZE), np.float32)
    for place, (p, q) in enumerate(rows):
        padded[place, :, : len(p)] = p, q
    q = np.repeat(padded[:, 1:], 4, axis=1)
    return Problems(
        padded[:, 0], q, np.tile(np.arange(SIZE, dtype=np.int32), (len(rows), 1))
    )


def test_drafts_that_are_improbable_are_drafts():
    """Three of three tokens are drafted, whatever the odds: all is accepted."""
    p = [0.05, 0.7, 0.25]
    improbable = [[1, 1e-5, 10.0**-e] for e in (8, 20, 31, 33, 37)]
    given = examples([(p, q) for q in improbable])
    found = solved("without replacement", 3, given)
    np.testing.assert_allclose(found.output, given.p, atol=1e-6)
    np.testing.assert_allclose(found.upper_bound, 1, atol=1e-6)
    np.testing.assert_allclose(found.optimum, 1, atol=1e-6)
    assert found.converged.all()


@pytest.mark.parametrize(
    "name, n", [("without replacement", 3), ("top plus sample", 3)]
)
def test_where_tokens_lack_only_what_is_drafted_is_accepted(name, n):
    one, two = [0, 0, 1.0], [0, 0.5, 0.5]
    given = examples([([0.5, 0.3, 0.2], one), ([0.5, 0.3, 0.2], two)])
    found = solved(name, n, given)
    for value in (found.optimum, found.upper_bound, found.enumerated):
        np.testing.assert_allclose(value, [0.2, 0.5], atol=1e-5)
    np.testing.assert_allclose(found.output, given.p, atol=1e-6)


@pytest.mark.parametrize(
    "name, n", [("without replacement", 3), ("top plus sample", 3)]
)
def test_hostile_problems(name, n):
    assert not failures(name, n, problems(40, 7, np.float32))


@pytest.mark.sweep
@pytest.mark.parametrize("name, n", EVERY)
def test_hostile_problems_by_the_thousand(name, n):
    assert not failures(name, n, problems(340, n, np.float32))


@pytest.mark.sweep
@pytest.mark.parametrize("name, n", EVERY)
def test_hostile_problems_by_the_thousand_in_float64(name, n, float64):
    assert not failures(name, n, problems(340, n, np.float64))
