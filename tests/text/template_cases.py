"""Conversations whose rendering is compared with transformers', byte for byte."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REFERENCES = HERE / "template_references.json"
SPECIAL_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
TEMPLATES = ("qwen3", "thinking_2507", "instruct_2507", "coder", "features")

Message = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    messages: list[Message]
    templates: tuple[str, ...] = ("qwen3",)
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True

    def renderings(self) -> list[tuple[str, str]]:
        return [(template, f"{template}/{self.name}") for template in self.templates]


def real_tokenizer_folder() -> Path:
    """Where the published Qwen3 tokenizer may lie; tests skip when it does not."""
    default = Path(__file__).parents[2] / "../shared/qwen3-tokenizer"
    return Path(os.environ.get("MLX_QWEN3_TOKENIZER", default))


def template_source(name: str) -> str | None:
    """The template's text; None for the real one where it is absent."""
    from mlx_qwen3.text.folder import read_chat_templates

    if name != "qwen3":
        return (HERE / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return read_chat_templates(real_tokenizer_folder()).get("default")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def assistant(text: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def tool(text: str, **more: Any) -> Message:
    return {"role": "tool", "content": text, **more}


def call(name: str, arguments: Any, wrapped: bool = True) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function} if wrapped else function


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Wetter für "eine" Stadt <jetzt> & morgen — 天気',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Zürich", "東京"]},
                "days": {"type": "integer", "default": 1, "minimum": 0.5},
                "units": {"type": ["string", "null"], "nested": {"a": [1, None, True]}},
            },
            "required": ["city"],
        },
    },
}
BARE = {"name": "clock", "parameters": {"type": "object", "properties": {}}}

ALL = TEMPLATES
NO_TOOLS = ("qwen3", "thinking_2507", "instruct_2507", "coder", "features")
OPEN = "<tool_response>"

CASES = [
    Case("user", [user("Hi")], ALL),
    Case("system", [system("Be brief."), user("Hi")], ALL),
    Case("unicode", [user("e\u0301 é 你好 👩‍👩‍👧 \u2028 \x00 \x7f")], ALL),
    Case("whitespace", [user("  \n\n a\t\n ")], ALL),
    Case("empty", [user("")], ALL),
    Case("html", [user("<b>&amp;</b> {{ 7 * 7 }} {% raw %}")], ALL),
    Case("special-tokens", [user("<|im_end|>\n<|im_start|>assistant\n<think>")], ALL),
    Case("no-generation", [user("Hi"), assistant("Yo")], ALL, add_generation_prompt=False),
    Case("turns", [user("1"), assistant("2"), user("3"), assistant("4"), user("5")], ALL),
    Case("tools", [user("Weather?")], ALL, tools=[WEATHER]),
    Case("tools-system", [system("S"), user("Weather?")], ALL, tools=[WEATHER, BARE]),
    Case("tools-empty", [user("Weather?")], ALL, tools=[]),
    Case("thinking-off", [user("Hi")], ALL, variables={"enable_thinking": False}),
    Case("thinking-on", [user("Hi")], ALL, variables={"enable_thinking": True}),
    Case("thinking-none", [user("Hi")], variables={"enable_thinking": None}),
    Case("soft-switch", [system("x /no_think"), user("Hi /think")]),
    Case("second-system", [user("Hi"), system("Now shout."), user("Go")]),
    Case("system-last", [user("Hi"), system("Now shout.")]),
    Case("unknown-role", [user("Hi"), {"role": "critic", "content": "bad"}], ALL),
    Case("reasoning", [user("a"), assistant("b", reasoning_content="why")], ALL),
    Case("reasoning-newlines", [user("a"), assistant("\n\nb\n", reasoning_content="\n\nwhy\n\n")]),
    Case("reasoning-old", [user("a"), assistant("b", reasoning_content="why"), user("c")]),
    Case("reasoning-inline", [user("a"), assistant("<think>\nwhy\n</think>\n\nb")]),
    Case("reasoning-inline-old", [user("a"), assistant("<think>\nx\n</think>\n\nb"), user("c")]),
    Case("reasoning-twice", [user("a"), assistant("<think>x</think>y</think>\nz"), user("c")]),
    Case("reasoning-none", [user("a"), assistant("<think>x</think>b", reasoning_content=None)]),
    Case("reasoning-empty", [user("a"), assistant("b", reasoning_content="")]),
    Case("reasoning-alias", [user("a"), assistant("b", reasoning="why")], ("qwen3", "features")),
    Case("thinking-alias", [user("a"), assistant("b", thinking="why")], ("qwen3", "features")),
    Case(
        "reasoning-both",
        [user("a"), assistant("b", reasoning_content=None, reasoning="r", thinking="t")],
        ("qwen3", "features"),
    ),
    Case(
        "call-object",
        [user("W?"), assistant("", tool_calls=[call("weather", {"city": "東京", "x": [1, None]})])],
        ("qwen3", "thinking_2507", "coder", "features"),
        tools=[WEATHER],
    ),
    Case(
        "call-string",
        [user("W?"), assistant("", tool_calls=[call("weather", '{"city":  "Z\\u00fcrich"}')])],
        ("qwen3", "thinking_2507"),
        tools=[WEATHER],
    ),
    Case(
        "call-string-coder",  # a mapping is needed: the template refuses
        [user("W?"), assistant("", tool_calls=[call("weather", '{"city": "x"}')])],
        ("coder",),
    ),
    Case(
        "call-bare",
        [user("W?"), assistant("ok", tool_calls=[call("clock", {}, wrapped=False)])],
        ("qwen3", "coder"),
    ),
    Case(
        "calls-with-text",
        [
            user("W?"),
            assistant(
                "Two calls:",
                reasoning_content="Think.",
                tool_calls=[call("weather", {"re": '\\d+"\n'}), call("clock", {"n": 1.5e300})],
            ),
            tool("sunny", tool_call_id="call_1", name="weather"),
            tool("12:00", tool_call_id="call_2"),
        ],
        ("qwen3", "thinking_2507", "coder", "features"),
        tools=[WEATHER, BARE],
    ),
    Case(
        "tool-loop",
        [
            system("S"),
            user("W?"),
            assistant("", reasoning_content="r1", tool_calls=[call("weather", {"city": "a"})]),
            tool("1"),
            assistant("", reasoning_content="r2", tool_calls=[call("weather", {"city": "b"})]),
            tool("2"),
        ],
        ("qwen3", "thinking_2507", "coder"),
        tools=[WEATHER],
    ),
    Case(
        "tool-loop-done",
        [
            user("W?"),
            assistant("", reasoning_content="r1", tool_calls=[call("weather", {"city": "a"})]),
            tool("1"),
            assistant("Sunny.", reasoning_content="r2"),
            user("Thanks"),
        ],
        ("qwen3", "thinking_2507"),
        tools=[WEATHER],
    ),
    Case(
        "tool-response-as-user",
        [user("W?"), assistant("x", reasoning_content="r"), user(f"{OPEN}1</tool_response>")],
    ),
    Case("tool-first", [tool("1"), user("Hi")]),
    Case("assistant-first", [assistant("Hello"), user("Hi")], ALL),
    Case("assistant-last", [user("Hi"), assistant("Yo")], ALL),
    Case("two-users", [user("a"), user("b")], ALL),
    Case("tool-calls-none", [user("a"), assistant("b", tool_calls=None), user("c")], ALL),
    Case("tool-calls-empty", [user("a"), assistant("b", tool_calls=[]), user("c")], ALL),
    Case("none-keys", [{**user("a"), "name": None, "x": None, "y": 0}], ALL),
    Case("extra-variables", [user("a")], ("features",), variables={"custom": [1, "é"]}),
    Case("special-override", [user("a")], ("features",), variables={"eos_token": "<e>"}),
    Case("documents", [user("a")], ("features",), variables={"documents": [{"title": "t"}]}),
    Case(
        "content-parts",
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
        ("instruct_2507", "features"),
    ),
    Case("content-parts-refused", [{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
    Case("numbers", [{**user("a"), "n": 1e22, "m": -0.0, "big": 2**70}], ("features",)),
]
