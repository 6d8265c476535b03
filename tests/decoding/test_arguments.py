"""Arguments of a wrong kind or size are named at once; sensible ones work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.tree_verifiers import LayerResolution, as_tree_verifier
from globalres_jax.verifiers import GlobalResolution, RecursiveRejection

TARGET, DRAFT = (
    gr.testing.markov_model(
        jnp.asarray(np.random.default_rng(i).dirichlet(np.ones(6), 6), jnp.float32)
    )
    for i in (0, 1)
)
CONFIG = gr.SpeculativeConfig(
    num_drafts=2, draft_length=2, verifier=RecursiveRejection()
)
PROMPTS, LENGTHS = np.array([[1, 2, 0], [3, 0, 0]]), np.array([2, 3])


def generate(key=None, **changes):
    request = {
        "target": TARGET,
        "draft": DRAFT,
        "prompts": PROMPTS,
        "prompt_lengths": LENGTHS,
        "config": CONFIG,
        "max_new_tokens": 5,
    }
    key = jax.random.key(0) if key is None else key
    return gr.generate(key, **(request | changes))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_drafts", "2", "expected an integer, got '2'"),
        ("num_drafts", 2.0, "expected an integer, got 2.0"),
        ("num_drafts", 10**9, "num_drafts, draft_length: a tree of 2000000001 nodes"),
        ("draft_length", 10**8, "num_drafts, draft_length: a tree of 200000001 nodes"),
        ("draft_length", True, "expected an integer, got True"),
        ("tree", [2, 2], r"expected a TokenTree.*got \[2, 2\]"),
        ("tree", (-1, 0), "expected a TokenTree"),
        ("law", "iid", "expected a draft law's class.*got 'iid'"),
        ("law", ("iid", "iid"), "expected a draft law's class"),
        ("law", gr.IID(np.full(4, 0.25), 2), "expected a draft law's class"),
        ("verifier", "recursive", "expected a rule.*got 'recursive'"),
        ("verifier", GlobalResolution, r"got the class.*give a rule, GlobalResolution"),
        ("verifier", None, "expected a rule"),
        ("temperature", "1", "expected a number, got '1'"),
        ("temperature", None, "expected a number, got None"),
        ("temperature", np.array([0.5, 1]), "expected a number, got array"),
        ("temperature", np.nan, "must be 0 or more, got nan"),
        ("top_k", 2.5, "expected an integer, got 2.5"),
        ("top_k", "3", "expected an integer"),
        ("top_p", "x", "expected a number"),
        ("min_p", {}, "expected a number"),
        ("draft_top_k", "a", "expected an integer"),
        ("draft_temperature", "a", "expected a number"),
        ("draft_temperature", 0, "must be above 0, got 0"),
        ("draft_temperature", np.nan, "must be above 0, got nan"),
        ("cache_length", 5.5, "expected an integer"),
        ("cache_length", 10**15, "must be at most 2147483647"),
        ("pad_id", 10**12, "must be at most 2147483647"),
        ("measure_optimum", "no", "expected True or False"),
    ],
)
def test_options_of_a_wrong_kind(option, value, message):
    with pytest.raises(
        (TypeError, ValueError), match=f"^{option}.*{message}|{message}"
    ):
        dataclasses.replace(CONFIG, **{option: value})


def test_a_traced_option_is_named():
    with pytest.raises(TypeError, match=r"temperature: .* a value that jit traces"):
        jax.jit(lambda t: dataclasses.replace(CONFIG, temperature=t))(0.5)


def test_numbers_of_numpy_and_jax_are_numbers():
    given = dataclasses.replace(
        CONFIG,
        num_drafts=np.int64(2),
        draft_length=jnp.int32(2),
        temperature=jnp.float32(0.5),
        top_p=np.float32(0.5),
        top_k=jnp.int32(10),
        measure_optimum=np.bool_(False),
        law=[gr.IID, gr.IID],
    )
    wanted = dataclasses.replace(
        CONFIG, temperature=0.5, top_p=0.5, top_k=10, law=(gr.IID, gr.IID)
    )
    assert given == wanted and hash(given) == hash(wanted)
    assert dataclasses.replace(CONFIG, top_k=10**30).sampling.top_k == 2**31 - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"num_drafts": 2}}, "config: expected a SpeculativeConfig"),
        ({"options": {"temperature": 1}}, "options: expected SamplingOptions"),
        ({"target": "embedded"}, "target: expected a Model.*got 'embedded'"),
        ({"draft": "embedded-draft"}, "draft: expected a Model, a Drafter"),
        ({"draft": gr.PromptLookup}, "draft: expected a Model, a Drafter"),
        ({"prompts": [[1, 2], [3]]}, "prompts: rows of different lengths"),
        ({"prompts": "abc"}, "prompts: expected integers"),
        ({"prompts": np.zeros((0, 3), int), "prompt_lengths": []}, "prompts: no rows"),
        ({"prompt_lengths": np.array([1.0, 2])}, "prompt_lengths: expected integers"),
        ({"prompt_lengths": None}, "prompt_lengths: expected shape"),
        ({"max_new_tokens": "5"}, "max_new_tokens: expected an integer"),
        ({"max_new_tokens": 10**12}, "max_new_tokens: must be at most 16777216"),
        ({"max_new_tokens": [5, 10**30]}, "max_new_tokens: must be at most 16777216"),
        ({"eos_id": "x"}, "eos_id: expected integers"),
        ({"eos_id": 1.5}, "eos_id: expected integers"),
        ({"eos_id": [None]}, "eos_id: expected integers"),
        ({"eos_id": 10**12}, "eos_id: .* are no tokens"),
        ({"key": 5}, "key: expected a key, such as jax.random.key"),
        ({"key": np.ones(2)}, "key: expected a key.*array float64"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key: expected one key or 2"),
        ({"options": gr.SamplingOptions(temperature=None)}, "temperature: expected a"),
        ({"options": gr.SamplingOptions(top_k=2.5)}, "top_k: expected an integer"),
    ],
)
def test_requests_of_a_wrong_kind(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        generate(**changes)


def test_sampling_options_of_text_are_refused_when_they_are_made():
    for options in ({"temperature": "1"}, {"top_p": {}}, {"min_p": np.array(["a"])}):
        with pytest.raises(TypeError, match=f"{next(iter(options))}: expected a numb"):
            gr.SamplingOptions(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gr.TokenTree([2, 2]), r"parents: .*got \(2, 2\).*see tree.branching"),
        (lambda: gr.TokenTree(5), "parents: expected a sequence of integers, got 5"),
        (lambda: gr.TokenTree("ab"), "parents: expected a sequence of integers"),
        (lambda: gr.TokenTree((-1, 0.5)), "parents: expected an integer, got 0.5"),
        (lambda: gr.TokenTree([-1] + [0] * 5000), "parents: a tree of 5001 nodes"),
        (lambda: gr.tree.branching(3), "widths: expected a sequence of integers"),
        (lambda: gr.tree.branching((10**5,) * 9), "widths: a tree of 100001 nodes"),
        (lambda: gr.tree.paths(10**9, 1), "a tree of 1000000001 nodes; at most 4096"),
        (lambda: gr.tree.chain(2.5), "length: expected an integer, got 2.5"),
    ],
)
def test_trees_of_a_wrong_kind_or_size(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_keys_of_the_older_kind_are_keys():
    """In text, in samples of a law, in walks."""
    wanted = generate().tokens
    olds = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.PRNGKey(0), np.arange(2))
    for key in (jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0)), olds):
        np.testing.assert_array_equal(generate(key).tokens, wanted)
    law = gr.IID(jnp.full(6, 1 / 6), 2)
    tree, p = gr.tree.paths(2, 1), jnp.full((3, 6), 1 / 6)
    laws = (jax.tree.map(lambda x: x[None], law),)
    rule = as_tree_verifier(RecursiveRejection())

    @jax.jit
    def outcome(first, second):
        walk = rule.walk(second, tree, jnp.array([0, 1, 2]), p, laws)
        return jnp.append(law.sample(first), walk.next_token)

    old, new = jax.random.PRNGKey, jax.random.key
    np.testing.assert_array_equal(outcome(old(0), old(1)), outcome(new(0), new(1)))


def test_what_prompts_are_padded_with_is_nobodys_business():
    wanted = generate().tokens
    for filler in (5, 6, 999, -7, 2**40):
        prompts = np.array([[1, 2, filler], [3, 0, 0]])
        np.testing.assert_array_equal(generate(prompts=prompts).tokens, wanted)


@pytest.mark.usefixtures("both_precisions")
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(RecursiveRejection(), marks=pytest.mark.sweep),
        LayerResolution(),
    ],
)
def test_text_where_64_bit_numbers_are_enabled(rule):
    """At temperature 0 it is the target's own."""
    config = dataclasses.replace(CONFIG, verifier=rule, temperature=0)
    result = generate(config=config)
    for row, token in zip(result.tokens, (2, 0), strict=True):
        for found in row:
            token = int(TARGET.params[token].argmax())
            assert int(found) == token
