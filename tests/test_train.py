"""Training through the decoder that decodes, on a text that takes seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import globalres_jax as gr
from globalres_jax.models import train
from globalres_jax.models.fitting import cross_entropy, divergence, overlap

TEXT = "the cat sat on the mat and the dog sat on the log. " * 60
LENGTH = 17
SHAPE = dict(
    hidden_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
)


def test_training_lowers_the_loss_and_what_it_writes_decodes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "TARGET", dict(num_hidden_layers=1, **SHAPE))
    monkeypatch.setattr(train, "DRAFT", dict(num_hidden_layers=1, **SHAPE))
    untrained, make = [], train.new_student

    def remember(*arguments):
        untrained.append(make(*arguments))
        return untrained[-1]

    monkeypatch.setattr(train, "new_student", remember)
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "pair"
    options = ["--text", str(tmp_path / "text"), "--out", str(out)]
    options += ["--vocab-size", "270", "--length", str(LENGTH), "--batch", "8"]
    train.main([*options, "--steps", "12", "--draft-steps", "12"])
    assert "single-draft acceptance on held-out text: 0." in capsys.readouterr().out

    target, draft = gr.models.load_pair(out / "target", out / "draft")
    assert target.tokenizer.vocab_size == target.vocab_size == 270
    assert target.eos_id == (0,)
    tokens = target.tokenizer.encode(TEXT)[: 8 * LENGTH]
    held = np.asarray(tokens).reshape(8, LENGTH)
    before, untaught = (
        jax.device_put(student.params, jax.devices()[0]) for student in untrained
    )
    assert [student.function for student in untrained] == [target.apply, draft.apply]
    score = jax.jit(target.apply.score)
    trained = score(target.params, held)
    loss = jax.jit(cross_entropy)
    losses = [loss(x, held) for x in (score(before, held), trained)]
    assert abs(losses[0] - np.log(270)) < 0.1
    assert losses[1] < losses[0] - 0.2

    draft_score = jax.jit(draft.apply.score)
    learned = [draft_score(params, held) for params in (untaught, draft.params)]
    divergences = [jax.jit(divergence)(trained, x) for x in learned]
    overlaps = [jax.jit(overlap)(trained, x) for x in learned]
    assert divergences[1] < divergences[0] and overlaps[1] > overlaps[0]

    prompt = jnp.asarray([target.tokenizer.encode("the cat")])
    rule = gr.verifiers.SingleDraft()
    config = gr.SpeculativeConfig(
        num_drafts=1, draft_length=1, verifier=rule, temperature=0
    )
    lengths = jnp.array([prompt.shape[1]])
    spoken = gr.generate(jax.random.key(0), target, draft, prompt, lengths, config, 6)
    # Greedy: each token is the target's likeliest after those before it.
    first, text = prompt.shape[1] - 1, np.zeros((8, LENGTH), np.int32)
    text[0, : first + 7] = [*np.asarray(prompt[0]), *np.asarray(spoken.tokens[0])]
    likeliest = np.argmax(score(target.params, text), -1)
    np.testing.assert_array_equal(spoken.tokens[0], likeliest[0, first : first + 6])


def test_a_text_too_short_is_refused(tmp_path):
    (tmp_path / "text").write_text("to be or not to be")
    with pytest.raises(ValueError, match=r"last tenth of .* has \d tokens"):
        train.main(["--text", str(tmp_path / "text"), "--out", str(tmp_path / "m")])
