"""Chat templates: what `transformers` gives them, and no more than they may take."""

import datetime

import pytest
from loaded import embedded

from globalres_jax.models import Tokenizer, bounded_template
from globalres_jax.models.chat_template import render

MESSAGES = [
    {"role": "user", "content": "hi", "tool_calls": None},
    {"role": "assistant", "content": "yo", "thinking": "hm"},
]


def prompt(template, messages=MESSAGES, **options):
    tokenizer = Tokenizer(
        embedded()[0].tokenizer.definition,
        template,
        (("bos_token", "<s>"),),
        source="/models/tiny",
    )
    return tokenizer.apply_chat_template(messages, **options)


@pytest.mark.parametrize(
    ("template", "options", "text"),
    [
        ("{{ tools is none }} {{ documents is none }}", {}, "True True"),
        ("{{ tools[0].name }}", {"tools": [{"name": "add"}]}, "add"),
        ("{{ documents[0].title }}", {"documents": [{"title": "A"}]}, "A"),
        ("{{ enable_thinking is defined }}", {}, "False"),
        ("{{ enable_thinking }}", {"enable_thinking": False}, "False"),
        ("{{ bos_token }}", {}, "<s>"),
        ("{{ bos_token }}", {"bos_token": "<b>"}, "<b>"),
        ("{{ add_generation_prompt }}", {"reply": False}, "False"),
        ("{{ messages[0].tool_calls is defined }}", {}, "False"),
        ("{{ messages[1].reasoning_content }}", {}, "hm"),
        ("{{ {'b': '<é>', 'a': [1]} | tojson }}", {}, '{"b": "<é>", "a": [1]}'),
        ("{{ {'a': 1} | tojson(indent=1) }}", {}, '{\n "a": 1\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", {}, "[1,2]"),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", {}, "user"),
        ("{{ '%s %03d' % ('a', 17) }}", {}, "a 017"),
        ("{{ '{} {:>3}'.format(10 ** 12, 'x') }}", {}, "1000000000000   x"),
        ("{{ '%d' | format(10 ** 12) }}", {}, "1000000000000"),
        ("{{ ' a ' ~ 1 ~ none }}", {}, " a 1None"),
        ("{{ 'a,b'.split(',') | join(';') }}", {}, "a;b"),
        ("{% set n = namespace(x=0) %}{% set n.x = 2 %}{{ n.x }}", {}, "2"),
    ],
)
def test_what_a_template_is_given(template, options, text):
    assert prompt(template, **options) == text


def test_generation_blocks_are_their_text():
    """With the scope of a block that is called, in a loop, trimmed or not."""
    template = (
        "{% for m in messages %}\n"
        "{{ m.role }}:{% generation %}{{ m.content }}{% set x = 1 %}"
        "{% endgeneration %}{{ x is defined }};\n"
        "{%- generation -%} {{ loop.index }} {%- endgeneration -%}\n"
        "{% endfor %}"
    )
    assert prompt(template) == "user:hiFalse;1assistant:yoFalse;2"


def test_the_time_is_that_of_now():
    year = str(datetime.datetime.now().year)
    assert prompt("{{ strftime_now('%Y') }}") in (year, str(int(year) + 1))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("a\n{{ raise_exception('no tools') }}", r"no tools \(.*line 2\)"),
        ("a\n\n{{ 1 + 'a' }}", r"unsupported operand.*line 3"),
        ("{{ foo.bar }}", "'foo' is undefined"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages[7].role }}", "no element 7"),
        ("{% if %}", "Expected an expression"),
        ("{% endgeneration %}", "unknown tag"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'a' | nosuch }}", "No filter named"),
    ],
)
def test_errors_say_which_template(template, reason):
    match = rf"(?s)^tokenizer: its chat template says: .*{reason}"
    with pytest.raises(ValueError, match=match) as caught:
        prompt(template)
    assert "(template 'default' of /models/tiny" in str(caught.value)


def doubled(step, start="'a'"):
    """A value that doubles sixty times."""
    return (
        f"{{% set n = namespace(x={start}) %}}{{% for i in range(60) %}}"
        f"{step}{{% endfor %}}{{{{ n.x }}}}"
    )


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "x{% endfor %}{% endfor %}",
    "long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "macro of itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "loop of itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "times, turned": "{{ 9999999999 * [0] }}",
    "power": "{{ 10 ** 999999999 }}",
    "squares": doubled("{% set n.x = n.x * n.x %}", "7"),
    "tilde": doubled("{% set n.x = n.x ~ n.x %}"),
    "plus": doubled("{% set n.x = n.x + n.x %}"),
    "join": doubled("{% set n.x = [n.x, n.x] | join %}"),
    "block": doubled("{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "lists": doubled("{% set n.x = [n.x, n.x] %}"),
    "center": "{{ 'a' | center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "format of a format": "{{ '{:{}}'.format(1, 9999999999) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (9999999999, 1) }}",
    "percent filter": "{{ '%9999999999d' | format(1) }}",
    "replace": "{% set a = 'a' * 10 ** 6 %}{{ a.replace('a', a) }}",
    "joined": "{{ range(99999) | join('a' * 10 ** 6) }}",
    "indent": "{{ 'a\nb' | indent(10 ** 10) }}",
    "bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "round": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "huge": "a" * 1_000_001,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_ended(name, monkeypatch):
    monkeypatch.setattr(bounded_template, "MOST_STEPS", 2000)
    monkeypatch.setattr(bounded_template, "LONGEST", 1_000_000)
    with pytest.raises(ValueError, match="its chat template says"):
        render(ENDLESS[name], MESSAGES, {})


def test_time_ends_what_steps_do_not(monkeypatch):
    """A loop whose condition passes nothing takes no steps."""
    times = iter(range(10**9))
    monkeypatch.setattr(bounded_template.time, "monotonic", lambda: next(times))
    template = (
        "{% for i in range(20) %}{{ range(9) | select('odd') | list }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="it takes more than 5 seconds"):
        render(template, MESSAGES, {})


def test_objects_become_what_json_has():
    class Media:
        def write(self):
            raise AssertionError("a template has called it")

    message = {"role": "user", "content": [{"image": Media(), "size": (1, 2.5)}]}
    assert prompt("{{ messages[0].content }}", [message]) == (
        "[{'image': '<Media>', 'size': (1, 2.5)}]"
    )
    with pytest.raises(ValueError, match="messages: expected mappings, got 'hi'"):
        prompt("{{ messages }}", ["hi"])
