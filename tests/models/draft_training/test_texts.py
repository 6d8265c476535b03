"""Texts in rows, their frame in a chat, the order in which they are learnt."""

import dataclasses

import numpy as np
import pytest

from globalres_jax import models
from globalres_jax.models.draft_training import texts as texts_module
from globalres_jax.models.draft_training.corpus import (
    collect_texts,
    count_tokens,
    sampled,
)
from globalres_jax.models.draft_training.texts import (
    Sampling,
    Texts,
    as_rows,
    chat_frame,
    fitting_prompts,
    join,
    read_texts,
    text_frame,
)
from globalres_jax.models.draft_training.trainer import rows_of_step

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} ;{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def target():
    return models.load("embedded")


def test_a_chat_is_framed_as_its_template_has_it(target):
    tokenizer = dataclasses.replace(target.tokenizer, chat_template=TEMPLATE)
    chat = dataclasses.replace(target, tokenizer=tokenizer)
    before, behind = chat_frame(chat)
    assert tokenizer.decode(before) == "[user] "
    assert tokenizer.decode(behind) == " ;[assistant] "
    with pytest.raises(ValueError, match="length: 20 tokens leave no room"):
        text_frame(chat, Sampling(length=20, question=16))


def test_what_is_no_chat_begins_with_an_end_of_text(target):
    assert chat_frame(target) == ([0], [])


def test_rows_are_cut_padded_counted_and_kept(tmp_path):
    texts = as_rows([[1, 5, 5, 6], [1, 2, 7, 7, 7, 7, 7]], [1, 2], 6)
    assert texts.tokens.tolist() == [[1, 5, 5, 6, 0, 0], [1, 2, 7, 7, 7, 7]]
    assert texts.lengths.tolist() == [4, 6]
    counts = count_tokens(texts, 10)
    assert counts.tolist() == [0, 0, 0, 0, 0, 2, 1, 4, 0, 0]
    rows = sampled(texts)
    assert rows.tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]]
    assert rows.sum() == counts.sum()
    texts.save(tmp_path / "texts.npz")
    again = join([Texts.read(tmp_path / "texts.npz"), texts[:1]])
    assert again.tokens.tolist() == [*texts.tokens.tolist(), [1, 5, 5, 6, 0, 0]]
    assert again.starts.tolist() == [1, 2, 1]


def test_given_prompts_are_answered_and_every_tenth_is_held(
    target, tmp_path, monkeypatch
):
    prompts = [[1, 5 + i][: 1 + i % 2] * 2 for i in range(30)]
    asked = []

    def answer(key, target, begun, room, temperatures, **options):
        asked.append((len(begun), list(temperatures)))
        assert [len(x) + y for x, y in zip(begun, room, strict=True)] == [8] * 4
        return [[9] * size for size in room]

    monkeypatch.setattr(texts_module, "_continue", answer)
    sampling = Sampling(rows=4, length=8, temperatures=(0.5, 1.0))

    def collected(folder, given):
        return collect_texts(folder, target, sampling, 40, 0, prompts=given)

    learnt, held = collected(tmp_path / "many", prompts)
    assert asked[0] == (4, [1.0] * 4) and asked[1] == (4, [0.5, 1.0] * 2)
    assert len(learnt) == 40 and len(held) == 4

    def fronts(texts):
        rows = zip(texts.tokens, texts.starts, strict=True)
        return {tuple(row[:start].tolist()) for row, start in rows}

    assert fronts(held) <= {tuple(x) for x in prompts[::10]}
    of_others = {tuple(x) for i, x in enumerate(prompts) if i % 10}
    assert fronts(learnt) <= of_others and len(fronts(learnt)) > 8
    for row, start in zip(learnt.tokens, learnt.starts, strict=True):
        assert row[start:].tolist() == [9] * (8 - start)
    # Of fewer than ten all serve for both.
    learnt, held = collected(tmp_path / "few", prompts[:1])
    assert fronts(learnt) == fronts(held) == {(1, 1)}


def test_prompts_that_leave_no_room_are_left_out():
    assert fitting_prompts([[1] * 8, [2] * 7, []], 8) == [[2] * 7]
    with pytest.raises(ValueError, match=r"--length 8; the shortest have 8, 9 tokens"):
        fitting_prompts([[1] * 9, [2] * 8], 8)


def test_a_file_is_read_in_full_rows(target, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Now is the winter of our discontent. " * 4)
    ids = target.tokenizer.encode(path.read_text())
    texts = read_texts(path, target, 8)
    assert texts.tokens.reshape(-1).tolist() == ids[: len(ids) // 8 * 8]
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_texts(path, target, 8)


@pytest.mark.parametrize(("count", "batch"), [(6, 2), (7, 3), (2, 5)])
def test_every_epoch_has_every_text_once(count, batch):
    rows = [rows_of_step(step, count, batch, seed=1) for step in range(2 * count)]
    assert all(len(row) == batch for row in rows)
    epochs = np.concatenate(rows)[: count * (2 * batch)].reshape(-1, count)
    assert (np.sort(epochs) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
