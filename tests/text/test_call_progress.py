"""Calls while they are written: nothing is taken back, and the parts join to the whole."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mlx_qwen3.text.call_progress import CallProgress
from mlx_qwen3.text.parser import StreamParser
from tests.text.splits import split
from tests.text.test_parser import CLOCK, FRAGMENTS, XML, call

TOOLS = [
    {
        "name": "write",
        "parameters": {"properties": {"path": {"type": "string"}, "text": {"type": "string"}}},
    }
]


def written(text: str, size: int = 1, tools: Any = None) -> list[tuple[list[str], Any]]:
    """For every call: its parts, the last one first known at its end, and the call."""
    parts = [text[place : place + size] for place in range(0, len(text), size)]
    return follow(parts, tools)


def follow(parts: Any, tools: Any = None) -> list[tuple[list[str], Any]]:
    parser, progress, given = StreamParser(tools=tools), CallProgress(tools), []
    calls: list[tuple[list[str], Any]] = []
    for part in [*parts, None]:
        for piece in parser.finish() if part is None else parser.feed(part):
            if piece.tool_call is not None:
                given.append(progress.finish(piece.tool_call))
                calls.append((given, piece.tool_call))
                progress, given = CallProgress(tools), []
        if parser.open_call:
            given.append(progress.update(parser.open_call))
    return calls


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "arguments": {"x": 1, "y": [true, {"z": "a\\"}]"}]}}',
        '{"name": "f", "arguments": {}}',
        '{"name": "f"}',
        '{"name": "f", "arguments":\n  {"x": "\\u00e9 é \\\\"}\n}',
        '{"arguments": {"x": 1}, "name": "f"}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"name": "f", "arguments": {"a": "one\n\ttwo", "b": 2}}',
        '{"name": "f", "arguments": {"a": 1, "re": "\\d+\\b"}}',
        '{"name": "f", "arguments": {"a": [1, "}"',
        '{"name": "f", "arguments": {"a": 1\n',
        '{"name": "f", "arguments": {"a": 1}}}',
        '{"name": "f", "arguments": {"a": "</tool_call>"}}',
    ],
)
def test_json_arguments_join(body: str, size: int) -> None:
    ((parts, made),) = written(call(body), size)
    assert made.error is None
    assert json.loads("".join(parts)) == made.arguments


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["untyped", "typed"])
@pytest.mark.parametrize("text", [XML, call(XML)])
def test_xml_arguments_join(text: str, tools: Any, size: int) -> None:
    ((parts, made),) = written(text, size, tools)
    assert made.error is None
    assert json.loads("".join(parts)) == made.arguments


def test_arguments_come_as_they_grow() -> None:
    ((parts, _),) = written(CLOCK, size=1)
    assert sum(map(bool, parts)) > 15
    assert parts[-1] == ""
    long = XML.replace("def f():", "def f():\n" + "    pass\n" * 40)
    ((parts, _),) = written(long, size=1, tools=TOOLS)
    assert sum(map(bool, parts)) > 300


def test_the_name_comes_first() -> None:
    progress = CallProgress()
    assert progress.update('<tool_call>\n{"name": "clo') == ""
    assert progress.name is None
    progress.update('<tool_call>\n{"name": "clock", "arguments": ')
    assert progress.name == "clock"
    progress = CallProgress()
    progress.update("<tool_call>\n<function=clock>")
    assert progress.name == "clock"


def check_random_calls(rounds: int) -> None:
    """The parts of any call that can be read join to its arguments; its text may be anything."""
    rng = random.Random(5)
    for _ in range(rounds):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 14)))
        tools = rng.choice([None, TOOLS])
        for parts, made in follow(split(text, rng), tools):
            joined = "".join(parts)
            if made.error is None and not doubtful(text):
                assert json.loads(joined) == made.arguments, text


def doubtful(text: str) -> bool:
    """A key twice: the first is what was given out, the last is what counts."""
    return text.count("<parameter=a>") > 1 or text.count('"a"') > 1


def test_random_calls() -> None:
    check_random_calls(3_000)


@pytest.mark.slow
def test_a_hundred_thousand_random_calls() -> None:
    check_random_calls(100_000)
