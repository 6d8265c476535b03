"""The same tokens as `transformers` makes of the same folder."""

import json

import pytest
from loaded import DATA

from globalres_jax.models import Tokenizer

GOLDEN = json.loads((DATA / "tokenizers.json").read_text("utf-8"))
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def write(folder, files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder / "tokenizer.json"


def plain_with(folder, files):
    """The plain tokenizer, with these files beside it."""
    base = GOLDEN["bases"]["prepend"]
    return Tokenizer.from_file(write(folder, {"tokenizer.json": base, **files}))


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_special_tokens_are_those_of_the_reference(name, tmp_path):
    case, texts = CASES[name], GOLDEN["texts"]
    golden = case["golden"]
    definition = {**GOLDEN["bases"][case["base"]], **case["changes"]}
    files = {"tokenizer.json": definition, **case["files"]}
    tokenizer = Tokenizer.from_file(write(tmp_path, files))
    assert [tokenizer.encode(text) for text in texts] == golden["ids"]
    bare = [tokenizer.encode(text, special_tokens=False) for text in texts]
    assert bare == golden["bare"]
    assert [tokenizer.decode(ids) for ids in golden["ids"]] == golden["decoded"]
    assert dict(tokenizer.special_tokens) == golden["special_tokens"]
    assert tokenizer.vocab_size == golden["size"]


def test_a_prompt_is_never_cut_nor_padded(tmp_path):
    """Whoever made the tokenizer, and however it was read."""
    cut, pad = (CASES[name]["changes"] for name in ("truncation", "padding"))
    definition = {**GOLDEN["bases"]["prepend"], **cut, **pad}
    tokenizer = Tokenizer(json.dumps(definition))
    text = "the dog " * 50
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the")) == 1


def test_templates_of_a_folder(tmp_path):
    """Files before options, and several by name."""
    several = [
        {"name": "default", "template": "D {{ bos_token }}"},
        {"name": "tool_use", "template": "T {{ tools | length }}"},
    ]
    options = {"bos_token": "<s>", "chat_template": several}
    tokenizer = plain_with(tmp_path, {"tokenizer_config.json": options})
    assert tokenizer.apply_chat_template([]) == "D <s>"
    assert tokenizer.apply_chat_template([], tools=[{}, {}]) == "T 2"
    assert (
        tokenizer.apply_chat_template([], chat_template="tool_use", tools=[]) == "T 0"
    )
    assert tokenizer.apply_chat_template([], chat_template="{{ 1 + 1 }}") == "2"
    files = {"chat_template.jinja": "J é", "chat_templates/rag.jinja": "R"}
    tokenizer = plain_with(tmp_path, files)
    assert tokenizer.apply_chat_template([]) == "J é"
    assert tokenizer.apply_chat_template([], chat_template="rag") == "R"
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.chat_template is None
    message = r"has no default chat template; name one of \['rag'\]"
    with pytest.raises(ValueError, match=message):
        tokenizer.apply_chat_template([])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", "[]"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
        ("added_tokens.json", {"a": "b", "c": 1}),
    ],
)
def test_a_broken_file_beside_is_a_value_error(name, content, tmp_path):
    with pytest.raises(ValueError, match="source: "):
        plain_with(tmp_path, {name: content})


def test_text_that_is_none_is_refused_in_words():
    tokenizer = Tokenizer(json.dumps(GOLDEN["bases"]["prepend"]))
    with pytest.raises(ValueError, match=r"text: '\\udcff' at 1 is half of a char"):
        tokenizer.encode("a\udcff")
    assert tokenizer.decode([-1, *tokenizer.encode("the"), -1]) == "the"
