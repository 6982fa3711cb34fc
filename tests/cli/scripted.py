"""A chat whose model says what a file tells it to: python -c "..." SCRIPT.json

SCRIPT.json is a list of replies; a reply is a list of [kind, text], with kind "thinking",
"answer", "call" (text: a name and arguments as JSON), "sleep" (text: seconds) or "end". Texts are
streamed a few characters at a time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_qwen3 import Conversation
from mlx_qwen3.agent.approval import Approvals
from mlx_qwen3.agent.tools import Outcome, Tool
from mlx_qwen3.cli.chat import _decide, converse
from mlx_qwen3.cli.lines import lines_of
from mlx_qwen3.cli.session import Session
from mlx_qwen3.cli.slash import COMMANDS
from mlx_qwen3.generation.output import Event
from tests.fakes import FakeLLM, calls, ends

START = "from tests.cli.scripted import main; main()"
STEP = 3  # characters to an event


def main() -> None:
    """Talk on this terminal until the input ends."""
    replies = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = FakeLLM(*(list(_events(reply)) for reply in replies))
    llm._play = _played  # type: ignore[method-assign]
    lines = lines_of(sys.stdin, list(COMMANDS))
    chat = Conversation(llm, tools=[_tool(name) for name in ("look", "wait")])
    session = Session(chat, sys.stdout, Approvals(lambda call: _decide(lines, call)))
    converse(session, lines)


def _tool(name: str) -> Tool:
    schema = {"type": "function", "function": {"name": name, "parameters": {}}}
    return Tool(name, schema, _run)


def _run(arguments: Any) -> Outcome:
    time.sleep(arguments.get("seconds", 0))
    return Outcome(arguments.get("says", "done"), is_error=arguments.get("fails", False))


def _events(reply: list[list[str]]) -> Iterator[Any]:
    thought = 0
    for kind, text in reply:
        if kind == "call":
            name, arguments = json.loads(text)
            yield calls(name, **arguments)
        elif kind == "sleep":
            yield float(text)
        elif kind == "end":
            yield ends(text, thinking_tokens=thought)  # type: ignore[arg-type]
        else:
            for start in range(0, len(text), STEP):
                thought += kind == "thinking"
                yield Event(kind, text[start : start + STEP], thinking_tokens=thought)  # type: ignore[arg-type]


def _played(script: Any) -> Iterator[Event]:
    for event in script:
        if isinstance(event, float):
            time.sleep(event)
        else:
            yield event
