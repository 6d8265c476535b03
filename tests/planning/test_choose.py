"""Rates and costs to shapes: nothing runs, everything is arithmetic."""

import dataclasses
import itertools
import math

import pytest

from globalres_jax.planning import (
    CANDIDATES,
    PLAIN,
    Acceptance,
    Costs,
    Shape,
    best_shape,
    independent,
    parse_shape,
    tokens_per_second,
)
from globalres_jax.planning.choose import (
    MARGIN,
    MOST_MEASURED,
    hopeful_shape,
    known_shapes,
    refine,
    stay_or_go,
)

#: Target calls that cost by the token, drafts and verification that cost little.
BY_TOKEN = Costs({1: 1.0, 9: 9.0}, {1: 0.01}, {1: 0.001})
#: An accelerator: a call costs what it costs.
FLAT = Costs({1: 1.0, 100: 1.0}, {1: 0.01}, {1: 0.001})


def test_survival_of_independent_drafts():
    half = independent(0.5)
    assert half.accepted(Shape(1, 3)) == pytest.approx(0.5 + 0.25 + 0.125)
    two = [1 - (1 - 0.5**depth) ** 2 for depth in (1, 2, 3)]
    assert half.curve(Shape(2, 3)) == pytest.approx(two)
    assert half.accepted(PLAIN) == 0
    with pytest.raises(ValueError, match=r"rate: must lie in \[0, 1\], got 1.5"):
        independent(1.5)


def test_measured_curves_and_what_lies_between_them():
    one, four = (0.6, 0.3, 0.15), (0.9, 0.7)
    known = Acceptance({1: one, 4: four})
    assert known.curve(Shape(1, 2)) == pytest.approx(one[:2])
    assert known.curve(Shape(4, 2)) == pytest.approx(four)
    # A chain goes on as it ended.
    assert known.curve(Shape(1, 5))[3:] == pytest.approx([0.075, 0.0375])
    effective = math.log(1 - 0.9) / math.log(1 - 0.6)
    power = math.log(effective) / math.log(4)
    assert known.curve(Shape(2, 1)) == pytest.approx([1 - 0.4 ** (2**power)])
    # More paths accept more, and no depth more than the one above.
    curves = [known.curve(Shape(n, 6)) for n in (1, 2, 3, 4, 5, 8)]
    for fewer, more in itertools.pairwise(curves):
        assert all(a < b for a, b in zip(fewer, more, strict=True))
        assert more == sorted(more, reverse=True)


def test_what_was_decoded_moves_the_estimate():
    prior = Acceptance({1: (0.6, 0.36), 4: (0.9, 0.7)}, steps=100)
    shape = Shape(1, 2)
    same = prior.observed(shape, 1000, 960)
    assert same.accepted(shape) == pytest.approx(0.96, abs=1e-6)
    worse = prior.observed(shape, 100_000, 20_000)
    assert worse.accepted(shape) == pytest.approx(0.2, abs=0.01)
    assert worse.accepted(Shape(4, 2)) < 0.5 * prior.accepted(Shape(4, 2))
    # Few steps move it a little, in the right direction; none not at all.
    little = prior.observed(shape, 10, 2).accepted(shape)
    assert 0.6 < little < 0.96
    assert prior.observed(shape, 0, 0) == prior == prior.observed(PLAIN, 50, 0)
    # Nothing accepted, or everything, is no certainty.
    for accepted in (0, 200):
        extreme = prior.observed(shape, 100, accepted)
        assert 0 < extreme.accepted(shape) < 2
        assert extreme.observed(shape, 10**6, 960_000).accepted(shape) == (
            pytest.approx(0.96, abs=0.01)
        )


def test_a_step_is_the_sum_of_its_parts():
    costs = Costs({1: 2.0, 9: 4.0, 17: 10.0}, {1: 0.1, 4: 0.4}, {1: 0.01, 4: 0.07})
    assert costs.step_seconds(PLAIN) == pytest.approx(2.01)
    assert costs.step_seconds(Shape(1, 8)) == pytest.approx(4 + 0.8 + 0.08)
    # 4 paths: the root's level is one wide, three levels are four.
    assert costs.step_seconds(Shape(4, 4)) == pytest.approx(10 + 0.1 + 1.2 + 0.28)
    # 13 tokens lie between 9 and 17, three paths between one and four.
    assert costs.step_seconds(Shape(3, 4)) == pytest.approx(7 + 0.1 + 0.9 + 0.2)
    # Beyond, the last line goes on, but never down.
    assert costs.step_seconds(Shape(1, 24)) == pytest.approx(16 + 2.4 + 0.24)
    down = dataclasses.replace(costs, target={1: 2.0, 9: 1.0})
    assert down.step_seconds(Shape(1, 16)) == pytest.approx(1 + 1.6 + 0.16)
    least = costs.least(Costs({1: 1.0, 9: 5.0, 3: 1.5}, {1: 0.2}, {1: 0.01}))
    assert least.target == {1: 1.0, 3: 1.5, 9: 4.0, 17: 10.0}
    assert least.draft == {1: 0.1, 4: 0.4}


@pytest.mark.parametrize(
    ("rate", "costs", "best"),
    [
        (0.0, FLAT, PLAIN),
        (0.0, BY_TOKEN, PLAIN),
        # Each draft costs as much as a token of plain decoding.
        (0.9, BY_TOKEN, PLAIN),
        (0.9, FLAT, Shape(8, 7)),
        # A draft level of half a target call: two tokens in 1.5, five in 3.5.
        (1.0, dataclasses.replace(FLAT, draft={1: 0.5}), Shape(1, 15)),
        (0.01, FLAT, PLAIN),
        (0.3, dataclasses.replace(FLAT, draft={1: 0.2}), Shape(1, 1)),
    ],
)
def test_best_shapes_of_simulated_acceptance(rate, costs, best):
    shapes = [s for s in CANDIDATES if best.num_paths > 1 or s.num_paths == 1]
    found, speed = best_shape(shapes, independent(rate), costs)
    assert found == best
    assert speed == tokens_per_second(best, independent(rate), costs)


def test_drafts_must_look_worth_their_risk():
    shape = Shape(1, 1)
    for gain, best in ((MARGIN - 0.01, PLAIN), (MARGIN + 0.01, shape)):
        costs = Costs({1: 1.0, 2: 1.5 / gain - 0.01}, {1: 0.01}, {1: 1e-9})
        assert best_shape([shape], independent(0.5), costs)[0] == best


def test_what_is_compiled_is_kept_where_little_would_be_won():
    acceptance, close = independent(0.5), dataclasses.replace(FLAT, draft={1: 0.02})
    assert stay_or_go(Shape(1, 5), [], acceptance, close) == Shape(1, 5)
    assert stay_or_go(Shape(1, 5), [Shape(1, 3)], acceptance, close) == Shape(1, 3)
    assert stay_or_go(Shape(1, 5), [PLAIN], acceptance, close) == Shape(1, 5)
    assert stay_or_go(PLAIN, [Shape(1, 3)], independent(0), FLAT) == Shape(1, 3)
    assert stay_or_go(PLAIN, [Shape(1, 3)], independent(0), BY_TOKEN) == PLAIN


class Machine:
    """`Measures` of a machine whose times are a table."""

    def __init__(self, rate, call, draft=0.01, paths=(0.0, 0.0)):
        self.acceptance = independent(rate)
        self.costs = Costs({1: call(1), 8: call(8)}, {1: draft}, {1: 0.001})
        self.call, self.paths, self.asked = call, paths, []

    def measure_call(self, shape):
        self.asked.append(shape)
        known = {**self.costs.target, shape.num_nodes: self.call(shape.num_nodes)}
        self.costs = dataclasses.replace(self.costs, target=known)

    def look_at_paths(self):
        self.asked.append("paths")
        draft, verify = self.paths
        self.costs = Costs(
            {**self.costs.target, 17: self.call(17)},
            {**self.costs.draft, 4: draft},
            {**self.costs.verify, 4: verify},
        )


def test_only_what_could_still_win_is_measured():
    # Useless drafts: nothing more is measured than one chain.
    machine = Machine(0.0, lambda n: 1 + 0.1 * n)
    refine(CANDIDATES, machine)
    assert machine.asked == []
    # Calls that cost by the token: one call of many says that trees do not pay.
    machine = Machine(0.6, lambda n: 1 + 0.4 * n)
    refine(CANDIDATES, machine)
    assert "paths" not in machine.asked and len(machine.asked) <= MOST_MEASURED
    # Calls that cost nothing more: several paths are looked at.
    machine = Machine(0.6, lambda n: 1.0, paths=(0.01, 0.001))
    refine(CANDIDATES, machine)
    assert "paths" in machine.asked
    known = known_shapes(CANDIDATES, machine.costs)
    best = best_shape(known, machine.acceptance, machine.costs)[0]
    assert best.num_paths > 1
    assert hopeful_shape(known, machine.acceptance, machine.costs) == best


def test_a_cheap_size_between_dear_ones_is_found():
    """16 tokens fill the tiles of a product, 12 do not."""
    machine = Machine(0.95, lambda n: 1.0 if n in (1, 16) else 1.4)
    refine([s for s in CANDIDATES if s.num_paths == 1], machine)
    known = known_shapes(CANDIDATES, machine.costs)
    assert best_shape(known, machine.acceptance, machine.costs)[0] == Shape(1, 15)


def test_shapes_as_they_are_written():
    for shape in CANDIDATES:
        assert parse_shape(str(shape)) == shape
        assert shape.tree.num_nodes == shape.num_nodes
    assert str(Shape(1, 7)) == "chain:7" and str(PLAIN) == "plain"
    for text in ("chain:0", "paths:2", "paths:0,3", "tree", "chain:-1", "chain:3,4"):
        with pytest.raises(ValueError, match="tree: expected auto, plain, chain:"):
            parse_shape(text)
