"""Chat templates: the text that transformers would make, and complaints that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from pipeline.config.schema import DataConfig
from pipeline.data.chat_template import ChatTemplate
from pipeline.data.files import DataError

CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
HEADERS = """{{ bos_token }}{% for m in messages %}{% if m.role == 'no' %}{% continue %}{% endif %}
<|{{ m.role }}|>
    {% if m.content is string %}{{ m.content | trim }}{% else %}
{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{{ eos_token }}
{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MARKED = """{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}
{% endfor %}{{ strftime_now('%Y') }}{% if add_generation_prompt %} go{% endif %}"""
STRICT = """{% if messages[0].role == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0].content }}"""

USER = {"role": "user", "content": " 1+1 = <2> ? "}
TALKS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": "It is "}],
    [USER, {"role": "assistant", "content": "2"}, USER],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def chat_of(model: Path, template: str, **data: Any) -> ChatTemplate:
    (model / "chat_template.jinja").write_text(template)
    return ChatTemplate(model, DataConfig(**data))


@pytest.mark.parametrize("template", [CHATML, HEADERS, MARKED], ids=["chatml", "headers", "marked"])
@pytest.mark.parametrize("talk", TALKS, ids=["user", "system", "going on", "turns"])
def test_text_is_that_of_transformers(model: Path, template: str, talk: list[dict[str, Any]]):
    last = talk[-1]["role"] == "assistant"
    arguments: dict[str, Any] = {"enable_thinking": False, "tools": [{"name": "<calc>"}]}
    given: dict[str, Any] = {**arguments, **TOKENS, "continue_final_message": last}
    [expected], _ = render_jinja_template(
        [talk], chat_template=template, add_generation_prompt=not last, **given
    )
    found = chat_of(model, template, chat_arguments=arguments).prompt_text(talk)
    assert found == (expected, True)


def test_messages_are_templated_and_text_only_when_asked(model: Path):
    assert chat_of(model, CHATML).prompt_text("1+1=") == ("1+1=", False)
    wrapped, templated = chat_of(model, CHATML, chat="always").prompt_text("1+1=")
    assert wrapped == "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"
    assert templated
    assert chat_of(model, CHATML, chat="always").prompt_text("") == ("", False)
    ended = chat_of(model, CHATML, chat_arguments={"add_generation_prompt": False}).prompt_text(
        [USER]
    )
    assert ended[0].endswith("<|im_end|>\n")


def test_system_message_is_put_before_messages_without_one_of_their_own(model: Path):
    chat = chat_of(model, CHATML, system="Be brief.")
    assert chat.prompt_text([USER])[0].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>u"
    )
    own = [{"role": "system", "content": "Own."}, USER]
    assert "Be brief" not in chat.prompt_text(own)[0]
    with pytest.raises(ValueError, match=r"data\.system cannot be added; set data\.chat: always"):
        chat.prompt_text("1+1=")


def test_fields_that_a_table_fills_up_with_null_are_as_if_absent(model: Path):
    template = "{% for m in messages %}{% if m.tool_calls is defined %}!{% endif %}.{% endfor %}"
    assert chat_of(model, template).prompt_text([{**USER, "tool_calls": None}])[0] == "."


def test_template_is_the_settings_then_the_files_then_that_of_the_tokenizers_configuration(
    model: Path, tmp_path: Path
):
    def text(**data: Any) -> str:
        return ChatTemplate(model, DataConfig(**data)).prompt_text([USER])[0]

    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert text() == "one"
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert text() == "two"
    config.write_text(json.dumps({"chat_template": {"default": "by name"}}))
    assert text() == "by name"
    config.write_text("{}")
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    assert text() == "of a processor"
    (model / "chat_template.jinja").write_text("three")
    assert text() == "three"
    (tmp_path / "own.jinja").write_text("four")
    assert text(chat_template=str(tmp_path / "own.jinja")) == "four"


@pytest.mark.parametrize(
    "prompt, claim",
    [
        ([], "is an empty list, expected messages"),
        (3, "is a number, expected text or a list of messages"),
        (["hello"], "is a list with text at [0], expected a message"),
        ([{"role": "usr", "content": "x"}], "has the role 'usr' at [0], expected one of system"),
        ([USER, {"content": "x"}], "has the role None at [1], expected one of system"),
        ([{"role": "user"}], "has no content at [0], expected text"),
        ([{"role": "user", "content": 3}], "has a number as content at [0], expected text"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "has image in the content at [0], expected text alone",
        ),
    ],
)
def test_messages_that_are_none_are_named(model: Path, prompt: object, claim: str):
    with pytest.raises(ValueError) as raised:
        chat_of(model, CHATML).prompt_text(prompt)
    assert claim in str(raised.value)


def test_a_template_that_refuses_is_named_with_its_line_and_reason(model: Path):
    chat = chat_of(model, STRICT, system="Be brief.")
    with pytest.raises(ValueError) as raised:
        chat.prompt_text([USER])
    text = str(raised.value)
    assert f"refused by {model / 'chat_template.jinja'}, line 2: System role not supported" in text
    assert "another template with data.chat_template" in text
    with pytest.raises(ValueError, match="line 1: TypeError"):
        chat_of(model, "{{ messages[0].content + 1 }}").prompt_text([USER])
    with pytest.raises(ValueError, match="line 1: .*unsafe"):
        chat_of(model, "{{ ''.__class__.__mro__ }}").prompt_text([USER])
    with pytest.raises(ValueError, match="leaves out of the text"):
        chat_of(model, "{{ messages[0].content }}").prompt_text(TALKS[2])


def test_a_template_that_is_none_or_missing_is_refused(model: Path):
    with pytest.raises(DataError, match=r"chat_template\.jinja:2: not a chat template"):
        chat_of(model, "\n{% for %}").prompt_text([USER])
    (model / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        ChatTemplate(model, DataConfig()).prompt_text([USER])
    (model / "chat_template.jinja").unlink()
    with pytest.raises(
        DataError, match=r"no chat template .* name a file with data\.chat_template"
    ):
        ChatTemplate(model, DataConfig()).prompt_text([USER])
    with pytest.raises(ValueError, match=r"data\.chat is never: expected text"):
        ChatTemplate(model, DataConfig(chat="never")).prompt_text([USER])
