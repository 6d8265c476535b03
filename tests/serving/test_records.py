"""Prompts as JSON has them: what is wrong with one is named."""

import pytest
from summing import LETTERS

import globalres_jax as gr
from globalres_jax.serving.records import Defaults, as_record, as_request

DEFAULTS = Defaults(gr.SamplingOptions(temperature=0.7, top_k=3), max_tokens=5)


class Chat:
    """A tokenizer of a model for chats: tokens are the characters."""

    chat_template = "yes"

    def encode(self, text, special_tokens=True):
        return [ord(letter) for letter in text]

    def apply_chat_template(self, messages):
        return "".join(f"{x['role'][0]}:{x['content']};" for x in messages)


def prompt_of(found, defaults=DEFAULTS, tokenizer=None):
    tokenizer = Chat() if tokenizer is None else tokenizer
    request = as_request(as_record(found, defaults), defaults, tokenizer)
    return "".join(map(chr, request.prompt))


def test_texts_messages_and_turns_as_the_model_wants_them():
    user = [{"role": "user", "content": "hi"}]
    assert prompt_of({"prompt": "hi"}) == "u:hi;" == prompt_of({"messages": user})
    assert prompt_of({"turns": ["hi", "there"], "category": "x"}) == "u:hi;"
    with_system = DEFAULTS._replace(system="be")
    assert prompt_of({"prompt": "hi"}, with_system) == "s:be;u:hi;"
    given = [{"role": "system", "content": "me"}, *user]
    assert prompt_of({"messages": given}, with_system) == "s:me;u:hi;"
    assert prompt_of({"prompt": "hi"}, DEFAULTS._replace(chat=False)) == "hi"
    record = as_record({"prompt": "abc"}, DEFAULTS)
    assert as_request(record, DEFAULTS, LETTERS).prompt == [0, 1, 2]


def test_options_of_a_line_come_before_those_of_the_command():
    def request(**options):
        record = as_record({"prompt": "a", **options}, DEFAULTS)
        return as_request(record, DEFAULTS, LETTERS, sample=2, name="x")

    plain = request()
    assert plain.options == DEFAULTS.sampling and plain.max_new_tokens == 5
    assert plain.name == "x"
    own = request(temperature=0, top_k=9, top_p=0.5, max_tokens=7, seed=11)
    assert (own.options.temperature, own.options.top_k, own.options.top_p) == (
        0,
        9,
        0.5,
    )
    assert own.options.greedy and own.options.max_top_k == 9
    assert own.max_new_tokens == 7
    same = gr.GenerationRequest(prompt="a", seed=11, sample=2)
    assert bool(own.row_key == same.row_key) and not bool(own.row_key == plain.row_key)
    off = request(temperature=None, top_k=None, seed=None)
    assert off.options.top_k is None and off.options.temperature == 0.7
    assert as_record({"prompt": "a", "question_id": 81}, DEFAULTS).name == 81


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["a"], "expected an object with a prompt"),
        ({"prompt": "a", "temprature": 1}, "unknown name 'temprature'; known are pro"),
        ({}, "expected one of prompt, messages, turns, got none of them"),
        ({"prompt": "a", "turns": ["a"]}, "got prompt and turns"),
        ({"prompt": ""}, "prompt: empty"),
        ({"prompt": 3}, "prompt: expected a text"),
        ({"turns": []}, "turns: expected a list of texts"),
        ({"messages": "a"}, "messages: expected a list of messages"),
        ({"messages": [{"role": "user"}]}, "messages: expected objects with texts"),
        ({"prompt": "a", "temperature": -1}, "temperature: must be 0 or more, got -1"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature: must be 0 or m"),
        ({"prompt": "a", "temperature": True}, "temperature: expected a number or nul"),
        ({"prompt": "a", "temperature": [1]}, "temperature: expected a number or null"),
        ({"prompt": "a", "top_p": 0}, "top_p: must lie in"),
        ({"prompt": "a", "top_p": 1.5}, "top_p: must lie in"),
        ({"prompt": "a", "min_p": 2}, "min_p: must lie in"),
        ({"prompt": "a", "top_k": 0}, "top_k: must be at least 1"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty: must be"),
        ({"prompt": "a", "min_new_tokens": 1.5}, "min_new_tokens: expected an integ"),
        ({"prompt": "a", "top_k": 1.5}, "top_k: expected an integer or null"),
        ({"prompt": "a", "max_tokens": 0}, "max_new_tokens: must be at least 1"),
        ({"prompt": "a", "max_tokens": 2**40}, "max_new_tokens: must be at most"),
        ({"prompt": "a", "seed": 2**64}, "seed: must lie in"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(found, message):
    with pytest.raises((ValueError, TypeError), match=message):
        as_record(found, DEFAULTS)


def test_chats_need_a_model_for_them():
    messages = {"messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(ValueError, match="messages: need a model with a chat templat"):
        prompt_of(messages, tokenizer=LETTERS)
    with pytest.raises(ValueError, match="--system: needs a model with a chat templ"):
        prompt_of({"prompt": "a"}, DEFAULTS._replace(system="b"), LETTERS)
