"""Chat templates: what they may use, and what a hostile one may not."""

import json
from datetime import datetime

import pytest

import pykvq
from pykvq import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]


def test_whitespace_is_trimmed_as_in_transformers():
    template = ChatTemplate(
        "{% for m in messages %}\n    {% if true %}\n{{ m['content'] }}\n    {% endif %}\n{% endfor %}"
    )
    assert template.render(USER) == "Hi\n"


def test_special_tokens_and_variables():
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}{{ x }}{{ missing }}", {"bos_token": "<s>"})
    assert template.render(USER, x=7) == "<s>Hi7"


def test_generation_prompt():
    template = ChatTemplate("{% if add_generation_prompt %}go{% endif %}")
    assert template.render(USER) == "go"
    assert template.render(USER, add_generation_prompt=False) == ""


def test_loop_controls():
    assert (
        ChatTemplate("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").render(USER)
        == "01"
    )


def test_generation_tag():
    assert ChatTemplate("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c").render(USER) == "abHic"


def test_tojson():
    value = {"b": "ü<>&", "a": [1, None]}
    assert ChatTemplate("{{ v | tojson }}").render(USER, v=value) == json.dumps(value, ensure_ascii=False)
    assert ChatTemplate("{{ v | tojson(indent=2) }}").render(USER, v=value) == json.dumps(
        value, ensure_ascii=False, indent=2
    )


def test_strftime_now():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(USER) == str(datetime.now().year)


def test_raise_exception():
    with pytest.raises(pykvq.ArgumentError, match="chat template: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(USER)


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'open", "{% endfor %}", "{% nonsense %}"])
def test_template_that_does_not_parse(source):
    with pytest.raises(pykvq.FormatError, match="chat template: "):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__[0] }}",
        "{{ range(10**9) | list }}",
        "{{ 1 // 0 }}",
        "{{ missing.attribute }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_hostile_template_is_an_error(source):
    with pytest.raises(pykvq.ArgumentError, match="chat template: "):
        ChatTemplate(source).render(USER)
