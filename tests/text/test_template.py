"""Chat templates: stored renderings of transformers, and what goes wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.errors import TemplateError, TokenizerError
from mlx_qwen3.text import ChatTemplate, thinking_state
from tests.text.template_cases import (
    CASES,
    REFERENCES,
    SPECIAL_TOKENS,
    Case,
    assistant,
    call,
    real_tokenizer_folder,
    template_source,
    user,
)

REFERENCE: dict[str, str | None] = json.loads(REFERENCES.read_text(encoding="ascii"))
PAIRS = [
    pytest.param(case, template, key, id=key)
    for case in CASES
    for template, key in case.renderings()
]


def template(name: str) -> ChatTemplate:
    source = template_source(name)
    if source is None:
        pytest.skip("the published Qwen3 tokenizer is not here (set MLX_QWEN3_TOKENIZER)")
    return ChatTemplate(source, SPECIAL_TOKENS)


def render(chat_template: ChatTemplate, case: Case) -> str | None:
    try:
        return chat_template.render(
            case.messages,
            tools=case.tools,
            add_generation_prompt=case.add_generation_prompt,
            **case.variables,
        )
    except TemplateError:
        return None


@pytest.mark.parametrize(("case", "name", "key"), PAIRS)
def test_renders_what_transformers_renders(case: Case, name: str, key: str) -> None:
    assert render(template(name), case) == REFERENCE[key]


def test_every_stored_rendering_is_compared() -> None:
    assert sorted(REFERENCE) == sorted(key for case in CASES for _, key in case.renderings())
    assert len(CASES) >= 40


@pytest.mark.reference
def test_stored_renderings_are_current() -> None:
    pytest.importorskip("transformers")
    from tests.text.make_template_references import references

    template("qwen3")  # skips where it is absent
    assert references() == REFERENCE


def test_messages_are_not_changed() -> None:
    messages = [user("a"), assistant("b", reasoning=None, thinking="x")]
    before = json.dumps(messages)
    template("instruct_2507").render(messages)
    assert json.dumps(messages) == before


# --- several templates, several files


def test_named_templates_follow_the_tools() -> None:
    named = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert named.render([user("a")]) == "plain"
    assert named.render([user("a")], tools=[]) == "tools"
    assert ChatTemplate({"default": "plain"}).render([user("a")], tools=[]) == "plain"


def test_no_default_among_the_named() -> None:
    with pytest.raises(TemplateError, match="rag, tool_use; expected one called"):
        ChatTemplate({"tool_use": "t", "rag": "r"}).render([user("a")])


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def only(folder: Path) -> str:
    return ChatTemplate.from_folder(folder).render([user("a")])


def test_files_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, chat_template={"chat_template": "from chat_template.json"})
    assert only(tmp_path) == "from chat_template.json"
    config = {"chat_template": "from config, {{ eos_token }}", "eos_token": {"content": "<e>"}}
    write(tmp_path, tokenizer_config=config)
    assert only(tmp_path) == "from config, <e>"
    (tmp_path / "chat_template.jinja").write_text("from jinja é", encoding="utf-8")
    assert only(tmp_path) == "from jinja é"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    both = ChatTemplate.from_folder(tmp_path)
    assert both.render([user("a")], tools=[]) == "with tools"
    assert both.render([user("a")]) == "from jinja é"


def test_a_list_of_templates(tmp_path: Path) -> None:
    entries = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write(tmp_path, tokenizer_config={"chat_template": entries})
    assert only(tmp_path) == "d"


@pytest.mark.parametrize("value", [5, [], [{"name": "default"}], {"default": "d"}, [["a"]]])
def test_malformed_template_entry(tmp_path: Path, value: object) -> None:
    write(tmp_path, tokenizer_config={"chat_template": value})
    with pytest.raises(TokenizerError, match="neither a string nor a list"):
        ChatTemplate.from_folder(tmp_path)


def test_folder_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no chat template"):
        ChatTemplate.from_folder(tmp_path)


def test_unreadable_template_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match="unreadable"):
        ChatTemplate.from_folder(tmp_path)


# --- errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles\nmust alternate') }}", "refused these messages: Roles must"),
        ("a\n{% if %}", "broken at line 2"),
        ("{% unknown %}", "broken at line 1"),
        ("{{ missing.field }}", "'missing' is undefined"),
        ("{{ messages[0].content + none }}", "refused"),
        ("{{ messages[7].content }}", "refused"),
        ("{{ messages.append(1) }}", "is not safe|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace(__x=1) }}", "must not start with _"),
        ("{% set ns = namespace() %}{% set ns.__x = 1 %}", "must not start with _"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ range(10 ** 9) | list }}", "[Rr]ange too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ messages | tojson(indent=[]) }}", "refused"),
        ("{% include 'x' %}", "refused|broken"),
    ],
)
def test_template_errors_are_one_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        ChatTemplate(source).render([user("a")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([], None, "no messages"),
        (["Hi"], None, r"messages\[0\] is a str, expected an object"),
        ([user("a"), {"role": "user", "content": b"x"}], None, r"messages\[1\].content is a bytes"),
        ([user("a")], [print], r"tools\[0\] is a builtin_function_or_method"),
        ([user("a")], [{"a": [{1, 2}]}], r"tools\[0\].a\[0\] is a set"),
    ],
)
def test_wrong_messages(messages: list[Any], tools: list[Any] | None, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate("{{ messages }}").render(messages, tools=tools)


def test_call_without_content() -> None:
    """OpenAI clients send content null beside tool_calls; the Qwen3 template alone would fail."""
    messages = [user("a"), assistant(None, tool_calls=[call("f", {})]), user("b")]
    expected = [user("a"), assistant("", tool_calls=[call("f", {})]), user("b")]
    assert template("qwen3").render(messages) == template("qwen3").render(expected)
    sees = ChatTemplate("{{ messages[1].content is defined }}")
    assert sees.render(messages) == "False"


# --- thinking


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("qwen3", "hybrid"),
        ("thinking_2507", "always"),
        ("instruct_2507", "never"),
        ("coder", "never"),
    ],
)
def test_mode(name: str, mode: str) -> None:
    assert template(name).mode == mode


def test_mode_is_seen_not_searched() -> None:
    mentions = "{# enable_thinking <think> #}{{ messages[0].content }}"
    assert ChatTemplate(mentions).mode == "never"
    opens = (
        "{% set t = '<' ~ 'think>' %}{{ t if enable_thinking is not defined or enable_thinking }}"
    )
    assert ChatTemplate(opens).mode == "hybrid"
    assert ChatTemplate("<｜Assistant｜><think>\n").mode == "always"


HEADER = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        (HEADER, "none"),
        (HEADER + "<think>\n", "open"),
        (HEADER + "<think>", "open"),
        (HEADER + "<think>\n\n</think>\n\n", "closed"),
        (HEADER + "<think>\nSo far I thought", "open"),
        (HEADER + "<think>\nThought.\n</think>\n\nThe answer", "closed"),
        (HEADER + "The tag <think>", "none"),
        (HEADER + "<think>\nx\n</think>\n\ny<|im_end|>\n", "none"),
        ("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n", "none"),
        ("<｜User｜>Hi<｜Assistant｜><think>\n", "open"),
        ("<｜User｜>Hi<｜Assistant｜><think>\n\n</think>\n", "closed"),
        ("Write about the <think> tag", "none"),
        ("", "none"),
    ],
)
def test_thinking_state(prompt: str, state: str) -> None:
    assert thinking_state(prompt) == state


@pytest.mark.parametrize(
    ("name", "variables", "state"),
    [
        ("qwen3", {}, "none"),
        ("qwen3", {"enable_thinking": False}, "closed"),
        ("thinking_2507", {}, "open"),
        ("instruct_2507", {}, "none"),
    ],
)
def test_thinking_state_of_renderings(name: str, variables: dict[str, Any], state: str) -> None:
    prompt = template(name).render([user("<think> </think>")], **variables)
    assert thinking_state(prompt) == state


def test_published_template_is_found() -> None:
    template("qwen3")
    assert ChatTemplate.from_folder(real_tokenizer_folder()).mode == "hybrid"


@pytest.mark.parametrize(
    ("name", "form"), [("qwen3", "json"), ("instruct_2507", "json"), ("coder", "xml")]
)
def test_the_form_of_calls_shows_in_the_template(name: str, form: str) -> None:
    source = template_source(name)
    if source is None:
        pytest.skip(f"the published template {name} is not here")
    assert ChatTemplate(source).call_form == form
