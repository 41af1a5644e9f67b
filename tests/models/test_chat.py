"""Chat templates: finding the turn's two sides, what templates do to messages, and templates that mean harm.

The templates here are written for these tests, with the markers of the families they are named after.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from minimemo.errors import ModelError
from minimemo.models import chat
from minimemo.models.chat import ChatTemplate, Failure, marker

CHATML_DEFAULT = """\
{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\nBe a default.<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
QWEN3 = """\
{%- if tools %}{{- 'tools: ' + (tools | tojson) }}{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' ~ m['role'] ~ '\\n' ~ m.content ~ '<|im_end|>' ~ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if tools is not none %}{{- raise_exception('no tools here') }}{%- endif %}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif %}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if system is defined and loop.last else '') + m.content + ' [/INST]' }}
    {%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}
{%- endfor %}
"""
GEMMA2 = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{% for m in messages %}
{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
    {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
    {%- if m.content is string -%}{{ m.content | trim }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
DROPS_SYSTEM = "{% for m in messages if m.role == 'user' %}U: {{ m.content }}\n{% endfor %}A:"

TEMPLATES = {
    "chatml": CHATML_DEFAULT,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "drops": DROPS_SYSTEM,
}


SAID = chat._said  # tests elsewhere have another one, see conftest.py


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates are rendered as anywhere: in a process of their own."""
    monkeypatch.setattr(chat, "_said", SAID)


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, "dir/tokenizer_config.json", {"bos_token": "<bos>", "eos_token": "</s>"})


TURNS = {
    ("chatml", None): (
        "<|im_start|>system\nBe a default.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("chatml", "Short."): (
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("qwen3", None): ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ("llama3", "Short."): (
        "<bos><|start_header_id|>system<|end_header_id|>\n\nShort.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("mistral", None): ("<bos>[INST] ", " [/INST]"),
    ("mistral", "Short."): ("<bos>[INST] Short.\n\n", " [/INST]"),
    ("gemma2", None): ("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ("gemma2", "Short."): ("<bos><start_of_turn>user\nShort.\n\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ("gemma3", "Short."): ("<bos><start_of_turn>user\nShort.\n\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ("drops", "Short."): ("U: Short.\n\n", "\nA:"),
}


@pytest.mark.parametrize(("name", "system"), TURNS)
def test_a_turn_has_an_opening_and_a_closing(name: str, system: str | None) -> None:
    """Default and folded system prompts, refused system roles, no thinking, BOS as written."""
    assert template(TEMPLATES[name]).turn(system) == TURNS[name, system]


@pytest.mark.parametrize("name", TEMPLATES)
def test_around_a_message_the_sides_are_the_templates_own_rendering(name: str) -> None:
    text = "What does 'the <b>whole</b>' mean?\n\n你好 {{ 7 * 7 }} {% raw %}"
    opening, closing = template(TEMPLATES[name]).turn(None)
    assert template(TEMPLATES[name]).render([[{"role": "user", "content": text}]]) == [opening + text + closing]


def test_a_message_at_which_templates_trim_stays_whole() -> None:
    """Only a marker is rendered: a document's leading blank lines are not the template's to cut."""
    assert template(LLAMA3).turn(None)[0].endswith("<|end_header_id|>\n\n")
    assert template("{{ messages[0].content | upper }}!").turn(None) == ("", "!")


def test_filters_and_extensions_of_the_hub_work() -> None:
    text = (
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{% generation %}{{ messages[0].content }}{% endgeneration %}"
        "{{ {'k': '<你>'} | tojson }}{{ strftime_now('%Y') }}{{ documents is none }}"
    )
    opening, closing = template(text).turn(None)
    assert opening == "01" and closing == '{"k": "<你>"}2024True', "the date is the same every day, as memories are"


def test_marker_occurs_in_no_text() -> None:
    first = marker("a", "b")
    assert first.isdigit() and marker(f"x{first}y") not in (first, "")


# --- templates that fail --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ raise_exception('only\nafter lunch') }}", "only after lunch"),
        ("{{ messages[0].body.text }}", "UndefinedError"),
        ("Hello", "writes the user's message 0 times"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "2 times"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'x' * 3000000 }}{{ messages[0].content }}", "characters written"),
        ("{{ 'x' * 9999999999 }}", "MemoryError"),
    ],
)
def test_a_failing_template_is_named_with_its_file(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        template(text).turn(None)
    assert str(raised.value).startswith("dir/tokenizer_config.json: the chat template ")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("child")
def test_one_refused_conversation_leaves_the_others() -> None:
    user, system = {"role": "user", "content": "x"}, {"role": "system", "content": "y"}
    first, second = template(GEMMA2).render([[system, user], [user]])
    assert first == Failure("ValueError: no system role") and isinstance(second, str)


@pytest.mark.usefixtures("child")
@pytest.mark.skipif("sys.platform != 'linux'", reason="processor time is bounded on Linux")
def test_a_model_that_is_loaded_again_has_its_template_rendered_already(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }} once", "a.jinja")
    first = template.turn(None)
    monkeypatch.setattr(chat.subprocess, "run", lambda *_, **__: pytest.fail("rendered again"))
    assert ChatTemplate(template.text, "b.jinja").turn(None) == first == ("", " once")


@pytest.mark.usefixtures("child")
def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nested loops of the sandbox's largest range would run for hours."""
    monkeypatch.setattr(chat, "_CPU_SECONDS", 1)
    text = "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="limits of time or memory"):
        template(text).turn(None)


@pytest.mark.usefixtures("child")
def test_a_slow_template_is_stopped_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_SECONDS", 0.01)
    with pytest.raises(ModelError, match="did not finish"):
        template(CHATML_DEFAULT).turn(None)


@pytest.mark.usefixtures("child")
@pytest.mark.skipif("sys.platform != 'linux'", reason="memory is bounded on Linux")
def test_a_growing_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_MEMORY", 1 << 28)
    text = "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    with pytest.raises(ModelError, match=r"MemoryError|limits of time or memory"):
        template(text).turn(None)


@pytest.mark.usefixtures("child")
def test_modules_of_the_working_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` puts the working folder first on its path; a downloaded jinja2.py there must not be imported."""
    chat._said.cache_clear()
    (tmp_path / "jinja2.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    assert template(DROPS_SYSTEM).turn(None) == ("U: ", "\nA:")
