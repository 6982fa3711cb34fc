"""One training or test conversation, and its text in Qwen3's chat format."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]
Tool = dict[str, Any]

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
EMPTY_THINKING = "<think>\n\n</think>\n\n"
ASSISTANT = "<|im_start|>assistant\n"
END = "<|im_end|>"


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the assistant's, and is what the model should say.

    thinking: the mode in which the prompt is opened.
    """

    group: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = True

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        return self.messages[-1]

    def without_thinking(self) -> Example:
        """The same conversation in non-thinking mode."""
        bare = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in self.messages]
        return replace(self, messages=tuple(bare), thinking=False)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "", calls: list[Message] | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def tool_result(text: str) -> Message:
    return {"role": "tool", "content": text}


def held_out(key: str, one_in: int) -> bool:
    """Whether a prompt is kept for the tests: a fixed property of the text `key`."""
    return zlib.crc32(key.encode()) % one_in == 0


@lru_cache
def _template() -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render(
    messages: tuple[Message, ...],
    tools: tuple[Tool, ...] = (),
    thinking: bool = True,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation, as the shipped tokenizer's chat template makes it."""
    return _template().render(
        messages=list(messages),
        tools=list(tools) or None,
        enable_thinking=thinking,
        add_generation_prompt=add_generation_prompt,
    )


def render_prompt(example: Example) -> str:
    """What the model sees before it writes the last message."""
    return render(example.prompt, example.tools, example.thinking, add_generation_prompt=True)


def segments(example: Example) -> list[tuple[str, bool]]:
    """The conversation's text in pieces; True marks what the model learns to write.

    With thinking, every assistant message after the last question is learned: the template shows
    it its own reasoning within a tool loop. Without, only the last one is: the template leaves the
    empty thinking block out of all earlier messages.
    """
    text = render(example.messages, example.tools, example.thinking)
    if not example.thinking:
        head, _, tail = text.rpartition(EMPTY_THINKING)
        return [(head + EMPTY_THINKING, False), (tail.removesuffix("\n"), True)]
    wanted = 1
    for message in reversed(example.prompt):
        if message["role"] == "user":
            break
        wanted += message["role"] == "assistant"
    head, *replies = text.rsplit(ASSISTANT, wanted)
    out = []
    for reply in replies:
        said, _, rest = reply.partition(END)
        out += [(head + ASSISTANT, False), (said + END, True)]
        head = rest
    return out
