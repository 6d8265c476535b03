"""The embedded pair, and what importing the package costs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from loaded import apply, causal, embedded, prefill

import globalres_jax as gr
from globalres_jax.drafters.prompt_lookup import PromptLookup
from globalres_jax.models.loading import END_OF_TEXT, NAMED

SPEECH = "KING RICHARD III:\nWhat say you to my lord?"


def size(model, of=lambda x: x.nbytes):
    return sum(of(x) for x in jax.tree.leaves(model.params))


def test_embedded_pair():
    target, draft = embedded()
    assert 5_000_000 <= size(target, lambda x: x.size) <= 12_000_000
    assert 10 <= size(target) / size(draft) <= 20
    text = "ROMEO:\nWhat light through yonder window breaks?\nÆ"
    tokens = target.tokenizer.encode(text)
    assert target.tokenizer.decode(tokens) == text
    assert target.tokenizer == draft.tokenizer
    assert target.vocab_size == draft.vocab_size == target.tokenizer.vocab_size
    end = target.tokenizer.token_id(END_OF_TEXT)
    assert target.eos_id == draft.eos_id == (end,) == (0,)


def test_embedded_pair_knows_its_text():
    """Shakespeare is likelier than the same words in another order."""
    target, draft = embedded()
    speech = np.array(target.tokenizer.encode(SPEECH))

    def likelihood(model):
        logits, _ = prefill(model, np.stack([speech, speech[::-1]]))
        rows = jax.nn.log_softmax(logits)
        return [
            float(np.mean([row[i, t] for i, t in enumerate(text[1:])]))
            for row, text in zip(rows, (speech, speech[::-1]), strict=True)
        ]

    for model, least in ((target, -4), (draft, -5)):
        forward, backward = likelihood(model)
        assert forward > least
        assert forward > backward + 1


def test_step_by_step_equals_one_pass():
    _, draft = embedded()
    text = np.array([draft.tokenizer.encode("ROMEO:\nO, she doth teach")] * 2)
    whole, cache = prefill(draft, text)
    cache = cache.with_length(np.zeros(2, np.int32))
    for i in range(text.shape[1]):
        positions, mask = causal(1, i)
        logits, cache = apply(draft, text[:, i : i + 1], positions, cache, mask)
        np.testing.assert_allclose(logits[:, 0], whole[:, i], atol=1e-4)


def test_a_tokenizer_may_lie_beside_a_model_or_above_a_pair(tmp_path):
    folder = shutil.copytree(NAMED["embedded-draft"], tmp_path / "pair" / "draft")
    assert gr.models.load(folder).tokenizer is None
    source = NAMED["embedded-draft"].parent / "tokenizer.json"
    shutil.copy(source, folder.parent)
    model = gr.models.load(folder)
    assert model.tokenizer == embedded()[1].tokenizer
    other = json.loads(source.read_text("utf-8"))
    other["added_tokens"][0]["content"] = "<end>"
    other["model"]["vocab"]["<end>"] = other["model"]["vocab"].pop(END_OF_TEXT)
    (folder / "tokenizer.json").write_text(json.dumps(other))
    assert gr.models.load(folder).tokenizer.token_id("<end>") == 0


def test_a_model_loaded_twice_is_the_same_program():
    first, second = gr.models.load("embedded-draft"), embedded()[1]
    structures = [jax.tree.structure(model) for model in (first, second)]
    assert structures[0] == structures[1]
    assert hash(structures[0]) == hash(structures[1])


def test_pairs_of_the_embedded_target():
    target, draft = gr.models.load_pair("embedded", "layers:0-1")
    assert draft.apply.num_layers == 2
    assert draft.params["embedding"]["weight"] is target.params["embedding"]["weight"]
    again = gr.models.draft_for(target, "layers:0-1")
    assert again.apply == draft.apply
    assert again.params["embedding"]["weight"] is target.params["embedding"]["weight"]
    target, draft = gr.models.load_pair("embedded", "prompt-lookup")
    assert draft == PromptLookup()


IMPORTS = """
import sys
slow = {"flax", "gguf", "tokenizers", "safetensors", "jinja2", "huggingface_hub"}
slow.add("globalres_jax.models")
import globalres_jax as gr
assert "models" in dir(gr) and "models" in gr.__all__
assert not slow & set(sys.modules), slow & set(sys.modules)
try:
    gr.modles
except AttributeError as error:
    assert "has no attribute 'modles'" in str(error)
else:
    raise AssertionError
assert gr.models.load("embedded-draft").vocab_size == 1024
# Each is loaded by the first call that needs it.
assert not {"gguf", "jinja2", "huggingface_hub"} & set(sys.modules)
from globalres_jax import models
assert models is gr.models
"""


def test_importing_the_package_loads_no_models():
    root = Path(gr.__file__).parent.parent
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTS], check=True, cwd=root
    )


def test_the_last_token_s_logits_alone():
    model = gr.models.load("embedded-draft")
    tokens = np.arange(4)[None]
    mask = np.tri(4, 8, dtype=bool)[None]
    cache = model.init_cache(1, 8)
    arguments = model.params, tokens, tokens, cache, mask
    every, _ = jax.jit(model.apply)(*arguments)
    last, cache = jax.jit(model.apply.of_last)(*arguments)
    assert last.shape == (1, 1, model.vocab_size) and cache.length.tolist() == [4]
    np.testing.assert_allclose(last[:, 0], every[:, -1], atol=1e-4)
