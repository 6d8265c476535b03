"""`tree="auto"` from its measures to its text, on tables and by an injected clock."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.decoding import program
from globalres_jax.drafters import as_drafter
from globalres_jax.planning import (
    PLAIN,
    Acceptance,
    Costs,
    Draws,
    Estimates,
    Shape,
    automatic,
    calibration,
    store,
)
from globalres_jax.planning.estimates import PROBING_SHARE, as_json, from_json
from globalres_jax.planning.identity import name_of
from globalres_jax.planning.probe import Probe, Prompts, Seen
from globalres_jax.planning.question import Question

VOCAB_SIZE = 5
TABLE = np.random.default_rng(0).dirichlet(np.full(VOCAB_SIZE, 0.7), VOCAB_SIZE)
AUTO = gr.SpeculativeConfig(tree="auto")


def model(table, **changes) -> gr.Model:
    made = gr.testing.markov_model(jnp.asarray(table, jnp.float32))
    return dataclasses.replace(made, **changes)


TARGET, DRAFT = model(TABLE), model(0.5 * TABLE + 0.5 / VOCAB_SIZE)
PROMPTS, LENGTHS = jnp.array([[1, 2, 3], [2, 0, 0]]), jnp.array([3, 1])


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.delenv(store.VARIABLE, raising=False)
    automatic.forget()
    yield
    automatic.forget()


class Machine:
    """In place of `Probe`: parts take what a table says, drafts count as another."""

    looks = 0

    def __init__(self, prompts, platform, clock):
        self.keys, self.prompts = prompts.lengths, prompts
        ticks = itertools.count()
        self.clock = lambda: 1e6 * next(ticks)

    def target_call(self, request):
        return self.call(request.config.token_tree.num_nodes)

    def level_of_drafts(self, request):
        return 1e-4 * request.config.draft_top_k / 1024

    def look(self, request, others=()):
        type(self).looks += 1
        tree = request.config.token_tree
        paths = len(tree.levels[1])
        survival = [1 - (1 - self.rate**d) ** paths for d in range(1, 8)]
        gains = [[[self.gain(draws)]] for draws in others]
        law = request.config.law_of_level(0)
        if paths > 1 and law is not gr.IID:
            survival = [s**0.5 for s in survival]
        return Seen(
            survival=tuple(survival),
            trees=32,
            draft=0.01 * tree.depth,
            target=self.call(tree.num_nodes),
            verify=0.001 * tree.depth,
            redrawn=np.array(gains) * np.ones((4, 7)) * survival if others else None,
            after_root=(TABLE[:4], TABLE[:4] ** 2) if others else None,
        )

    def gain(self, draws):
        return 1.0

    def seconds(self, parts):
        return parts


@pytest.fixture
def machine(monkeypatch):
    """A machine of which `rate` and `call` are to be set."""
    machine = type("This", (Machine,), {"rate": 0.7, "call": staticmethod(lambda n: n)})
    monkeypatch.setattr(calibration, "Probe", machine)
    return machine


def plan(config=AUTO, draft=DRAFT, **arguments) -> gr.planning.Plan:
    return gr.plan(TARGET, draft, PROMPTS, LENGTHS, config, **arguments)


def test_the_choice_follows_costs_and_acceptance(machine):
    machine.call = staticmethod(lambda n: 1 + 0.01 * n)
    found = plan()
    assert found.shape.num_paths > 1
    assert isinstance(found.config.verifier, gr.tree_verifiers.LayerResolution)
    assert found.config.token_tree == found.shape.tree
    said = f"tree: {found.shape} by LayerResolution, "
    assert str(found).startswith(f"{said}WithoutReplacement drafts from 64 tokens, ")
    # The machine says so, and the law looked better after the root.
    assert found.config.law[:2] == (gr.WithoutReplacement, gr.IID)
    assert found.estimates.draws.law == "without-replacement"
    automatic.forget()
    machine.call = staticmethod(lambda n: 1 + 0.2 * n)
    found = plan()
    assert found.shape.num_paths == 1 and found.shape.length > 0
    automatic.forget()
    machine.rate = 0.0
    assert plan().shape == PLAIN and "no drafts pay" in str(plan())


def test_draws_are_chosen_for_one_path(machine):
    machine.call = staticmethod(lambda n: 1 + 0.2 * n)
    # Of five tokens, 64 are all.
    assert plan().estimates.draws == Draws(64)
    automatic.forget()
    machine.gain = lambda self, draws: 1.2 if draws.temperature == 1.3 else 1.0
    found = plan()
    assert found.config.draft_temperature == 1.3 and found.config.draft_top_k == 64
    assert found.shape.num_paths == 1 and found.config.law is gr.IID
    assert "drafts from 64 tokens, draft temperature x 1.3, " in str(found)
    survival = [min(1.2 * 0.7**d, 1) for d in range(1, 8)]
    np.testing.assert_allclose(found.estimates.acceptance.survival[1], survival)
    # What was named is kept.
    named = plan(dataclasses.replace(AUTO, draft_temperature=1.0, law=gr.IID))
    assert named.config.draft_temperature == 1.0


def test_what_was_asked_for_is_kept(machine):
    machine.call = staticmethod(lambda n: 1.0)
    rule = gr.verifiers.RecursiveRejection()
    asked = dataclasses.replace(
        AUTO, verifier=rule, law=gr.IID, temperature=0.5, draft_top_k=3
    )
    config = plan(asked).config
    assert config == dataclasses.replace(asked, tree=config.tree)
    # A rule for one draft, and a drafter of one path, leave chains alone.
    single = dataclasses.replace(AUTO, verifier=gr.verifiers.SingleDraft())
    for config, draft in ((single, DRAFT), (AUTO, gr.PromptLookup())):
        assert plan(config, draft).shape.num_paths == 1
    # So does a cache without room for more.
    short = dataclasses.replace(AUTO, cache_length=3 + 20 + 4)
    assert plan(short, max_new_tokens=20).shape == Shape(1, 3)
    with pytest.raises(ValueError, match="cache_length: 3 prompt tokens, 21 new"):
        plan(dataclasses.replace(short, cache_length=23), max_new_tokens=21)


def test_measured_once_and_learned_from_what_was_decoded(machine):
    machine.call = staticmethod(lambda n: 1 + 0.2 * n)
    first = plan()
    looks = machine.looks
    assert plan().shape == first.shape and machine.looks == looks
    # Another pair, other options: another estimate.
    plan(draft=model(TABLE))
    plan(dataclasses.replace(AUTO, temperature=0.3))
    assert machine.looks > 2 * looks
    # Drafts of no use after all: plain decoding pays.
    counts = jax.tree.map(
        jnp.asarray,
        gr.Metrics(
            num_spec_steps=np.array([5000, 4000]),
            num_draft_tokens=np.zeros(2),
            num_accepted_draft_tokens=np.array([10, 0]),
            acceptance_histogram=np.zeros(2),
            reached_per_position=np.zeros(2),
            optimum_sum=np.zeros(2),
            expected_sum=np.zeros(2),
        ),
    )
    gr.planning.observe(first, counts)
    gr.planning.learn(wait=True)
    after = plan()
    assert after.shape == PLAIN
    assert after.estimates.decoded_seconds == pytest.approx(
        5000 * first.estimates.costs.step_seconds(first.shape)
    )


def test_after_much_decoding_it_looks_again(machine):
    machine.call = staticmethod(lambda n: 1 + 0.2 * n)
    machine.rate = 0.0
    name = plan().name
    looks, machine.rate = machine.looks, 0.9
    assert plan().shape == PLAIN and machine.looks == looks
    known = automatic._MEMORY.estimates[name]
    due = dataclasses.replace(
        known, probe_seconds=1.0, decoded_seconds=1.01 / PROBING_SHARE
    )
    automatic._MEMORY.estimates[name] = due
    found = plan()
    assert machine.looks > looks and found.shape != PLAIN
    assert found.estimates.decoded_seconds == 0


def test_kept_on_disk_if_asked(machine, tmp_path, monkeypatch):
    folder = tmp_path / "plans"
    with gr.planning.kept_in(folder):
        first = plan()
    (file,) = folder.iterdir()
    looks = machine.looks
    automatic.forget()
    monkeypatch.setenv(store.VARIABLE, str(folder))
    again = plan()
    assert machine.looks == looks and again.shape == first.shape
    assert again.estimates == first.estimates
    # What is no estimate is measured anew, and replaced.
    content = json.loads(file.read_text())
    for broken in ("", "[]", "{}", json.dumps({**content, "costs": {"target": {}}})):
        file.write_text(broken)
        automatic.forget()
        assert plan().shape == first.shape
        assert from_json(json.loads(file.read_text())) == first.estimates
    # A folder that is none is no error.
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    automatic.forget()
    with gr.planning.kept_in(nowhere):
        assert plan().shape == first.shape


def test_estimates_that_are_none_are_refused():
    known = Estimates(
        Acceptance({1: (0.5,)}), Costs({1: 1.0}, {1: 0.1}, {1: 0.1}), 3, 99
    )
    good = json.loads(json.dumps(as_json(known)))
    assert from_json(good) == known
    for changed in (
        {"costs": {**good["costs"], "target": {"1": -1}}},
        {"costs": {**good["costs"], "draft": {"2": 1}}},
        {"acceptance": {**good["acceptance"], "survival": {"1": [1.5]}}},
        {"acceptance": {**good["acceptance"], "shift": float("nan")}},
        {"draws": [0, 1.0, "iid"]},
        {"draws": [64, 1.0, "best"]},
    ):
        with pytest.raises(ValueError, match="not"):
            from_json({**good, **changed})


def test_names_tell_pairs_apart():
    options = AUTO.sampling.for_rows(2)

    def name(config=AUTO, draft=DRAFT, options=options):
        return name_of(config, TARGET, as_drafter(draft), options)

    names = [
        name(),
        name(draft=model(TABLE)),
        name(draft=gr.PromptLookup()),
        name(draft=gr.PromptLookup(max_ngram=2)),
        name(dataclasses.replace(AUTO, verifier=gr.verifiers.Naive())),
        name(dataclasses.replace(AUTO, law=gr.WithoutReplacement)),
        name(dataclasses.replace(AUTO, draft_temperature=0.7)),
        name(options=gr.SamplingOptions(draft_temperature=0.7).for_rows(2)),
        name(options=AUTO.sampling.for_rows(3)),
        name(options=gr.SamplingOptions(temperature=0.3).for_rows(2)),
        name(options=gr.SamplingOptions(top_p=0.9).for_rows(2)),
        name(options=gr.SamplingOptions(min_p=0.9).for_rows(2)),
        name(options=gr.SamplingOptions(frequency_penalty=0.9).for_rows(2)),
        name(options=gr.SamplingOptions(logit_bias={1: 0.9}).for_rows(2)),
        name(options=gr.SamplingOptions(logit_bias={2: 0.9}).for_rows(2)),
    ]
    assert len(set(names)) == len(names)
    assert name() == name(draft=model(0.5 * TABLE + 0.5 / VOCAB_SIZE))


def test_without_anything_to_calibrate_on():
    compiled = gr.compile_generate
    with pytest.raises(ValueError, match="draft: None drafts nothing"):
        plan(draft=None)
    with pytest.raises(ValueError, match='law: tree="auto" needs one law'):
        gr.SpeculativeConfig(tree="auto", law=(gr.IID, gr.IID))
    with pytest.raises(TypeError, match=r"tree: expected a TokenTree.*or .auto."):
        gr.SpeculativeConfig(tree="best")
    with pytest.raises(ValueError, match='"auto" is no shape before'):
        _ = AUTO.token_tree

    def text(prompts):
        return compiled(jax.random.key(0), TARGET, DRAFT, prompts, LENGTHS, AUTO, 4)

    with pytest.raises(ValueError, match='"auto" has nothing to calibrate on where'):
        jax.jit(text)(PROMPTS)
    # Wrong arguments are named before anything is measured.
    with pytest.raises(ValueError, match="draft: has 3 tokens, the target 5"):
        plan(draft=model(np.full((3, 3), 1 / 3)))


def test_a_shape_may_take_the_place_of_auto():
    shaped = dataclasses.replace(AUTO, tree=gr.paths(2, 2))
    assert shaped == gr.SpeculativeConfig(tree=gr.paths(2, 2))
    assert hash(AUTO) == hash(gr.SpeculativeConfig(tree="auto"))


def test_text_and_counts_of_the_real_thing(monkeypatch):
    """Measured by a clock that ticks; then the text is the chosen config's."""
    # Few shapes, since each size of a target call is a program.
    monkeypatch.setattr(calibration, "CHAIN", Shape(1, 2))
    names = "globalres_jax.planning.question.CANDIDATES"
    monkeypatch.setattr(names, (PLAIN, Shape(1, 2)))
    ticks = itertools.count()
    choose = automatic.choose_plan

    def by_ticks(asked):
        return choose(asked, lambda: next(ticks) / 1e4)

    monkeypatch.setattr(program, "choose_plan", by_ticks)
    arguments = TARGET, DRAFT, PROMPTS, LENGTHS
    found = gr.plan(*arguments, AUTO, 6)
    # All calls take as long by this clock: a chain of two would need two and a half.
    curve = found.estimates.acceptance.survival[1]
    # The chance that one draft is accepted, where the target's own text is.
    overlap = np.minimum(TABLE, 0.5 * TABLE + 0.5 / VOCAB_SIZE).sum(1)
    assert overlap.min() - 1e-6 <= curve[0] <= overlap.max() + 1e-6
    assert curve[1] <= curve[0] and found.estimates.acceptance.steps >= 32
    result = gr.generate(jax.random.key(0), *arguments, AUTO, 6)
    same = gr.generate(jax.random.key(0), *arguments, found.config, 6)
    np.testing.assert_array_equal(result.tokens, same.tokens)
    np.testing.assert_array_equal(result.lengths, [6, 6])
    gr.planning.learn(wait=True)
    known = automatic._MEMORY.estimates[found.name]
    assert known.decoded_seconds > 0


def test_penalties_are_measured_with_the_text_they_depend_on():
    """A draft that is the target is always accepted if both are shown one text."""
    options = gr.SamplingOptions(
        repetition_penalty=3.0, frequency_penalty=1.5, logit_bias={1: 2.0}
    )
    asked = AUTO, TARGET, as_drafter(TARGET), options.for_rows(2), PROMPTS, LENGTHS
    config = dataclasses.replace(
        AUTO, tree=gr.tree.chain(2), verifier=gr.verifiers.SingleDraft()
    )
    request = Question(*asked, 8, None).request(config)
    seen = Probe(Prompts(PROMPTS, LENGTHS, 128), "cpu").look(request)
    np.testing.assert_allclose(seen.survival, 1, rtol=0, atol=1e-5)


def test_long_prompts_are_cut_to_what_was_probed():
    known = Estimates(
        Acceptance({1: (0.5,)}), Costs({1: 1.0}, {1: 0.1}, {1: 0.1}), 4, 99
    )
    prompts = np.arange(12).reshape(2, 6) % VOCAB_SIZE
    question = Question(
        AUTO,
        TARGET,
        as_drafter(DRAFT),
        AUTO.sampling,
        prompts,
        np.array([6, 2]),
        8,
        None,
    )
    probe = calibration.probe_for(question, known, lambda: 0.0)
    assert isinstance(probe, Probe)
    assert probe.prompts.capacity == 99 and isinstance(probe.prompts, Prompts)
    np.testing.assert_array_equal(probe.prompts.lengths, [4, 2])
    np.testing.assert_array_equal(probe.prompts.tokens[0], prompts[0, 2:])
    np.testing.assert_array_equal(probe.prompts.tokens[1, :2], prompts[1, :2])
