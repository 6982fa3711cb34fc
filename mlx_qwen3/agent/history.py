"""Messages in OpenAI's form: how a reply becomes one, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_qwen3.errors import OptionError

if TYPE_CHECKING:
    from mlx_qwen3.generation.output import Completion, Event
    from mlx_qwen3.text.tool_calls import ToolCall

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass
class Said:
    """What has come of a reply so far; one that was stopped has no completion. True if anything."""

    thinking: str = ""
    answer: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    completion: Completion | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        if event.kind == "thinking":
            self.thinking += event.text
        elif event.kind == "answer":
            self.answer += event.text
        elif event.tool_call is not None:
            self.calls.append(event.tool_call)
            if event.tool_call.error is not None:  # only its words can be passed back
                self.answer += f"\n{event.text}" if self.answer else event.text
        self.completion = event.completion

    def __bool__(self) -> bool:
        return bool(self.thinking or self.answer or self.calls or self.completion)

    def message(self, first_id: int = 1) -> Message:
        """The assistant's turn in OpenAI's form; its calls are numbered from `first_id`."""
        message: Message = {"role": "assistant", "content": self.answer}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        calls = [_call(call, name) for call, name in self.numbered(first_id) if name is not None]
        return {**message, "tool_calls": calls} if calls else message

    def numbered(self, first_id: int = 1) -> list[tuple[ToolCall, str | None]]:
        """The calls with their ids; one that could not be read has none."""
        ids = (f"call_{number}" for number in count(first_id))
        return [(call, next(ids) if call.error is None else None) for call in self.calls]


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def tool_result(call: ToolCall, text: str, call_id: str | None) -> Message:
    """The answer to a call; one that could not be read has no id."""
    named = {} if call_id is None else {"tool_call_id": call_id, "name": call.name}
    return {"role": "tool", **named, "content": text}


def save_messages(path: str | Path, messages: Sequence[Mapping[str, Any]]) -> None:
    """Write messages as a JSON list, whole or not at all.

    Raises OptionError when the file cannot be written, or holds something else.
    """
    target = Path(path).expanduser()
    if target.exists():
        load_messages(target)  # refuses to replace what is no such file
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(messages, indent=2, ensure_ascii=False) + "\n", "utf-8")
        partial.replace(target)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise OptionError(f"{target}: cannot be written ({exc.strerror})") from exc


def load_messages(path: str | Path) -> list[Message]:
    """The messages of a file: a JSON list, or an object with it under "messages".

    Raises OptionError when it is no such file.
    """
    source = Path(path).expanduser()
    try:
        found = json.loads(source.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise OptionError(f"{source}: cannot be read as JSON ({reason})") from exc
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise OptionError(f'{source}: expected a JSON list of {{"role": ..., "content": ...}}')
    return messages


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES


def _call(call: ToolCall, call_id: str) -> Message:
    # Arguments stay an object: Qwen3's templates take both, others only that.
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call_id, "type": "function", "function": function}
