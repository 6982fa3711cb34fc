"""What every API stands on: replies that begin before the 200, merge, break off well, and end."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mlx_qwen3 import LLM
from mlx_qwen3.errors import (
    BusyError,
    CheckpointError,
    ContextOverflowError,
    EngineError,
    ModelNotFoundError,
    OptionError,
    SchemaError,
    TemplateError,
)
from mlx_qwen3.server import openai_chat
from mlx_qwen3.server.body import Limits
from mlx_qwen3.server.events import KEEP_ALIVE, kept_alive, while_connected
from mlx_qwen3.server.problems import Disconnected, Problem, explain
from mlx_qwen3.server.replies import Ask
from tests.fakes import ends, says
from tests.server.services import PlayedService, Script, served

PATIENCE = 20.0  # seconds
LONG = 600.0  # seconds, longer than any test
BODY = {"messages": [{"role": "user", "content": "Hi"}]}
ENDLESS: Script = [says("word ")] * 100_000
Play = Callable[..., tuple[PlayedService, httpx.Client]]


@pytest.fixture
def play(demo: LLM) -> Iterator[Play]:
    """play(*scripts): a service that plays them behind chat/completions, and a client of it."""
    with ExitStack() as stack:

        def started(*scripts: Script, **options: Any) -> tuple[PlayedService, httpx.Client]:
            service = PlayedService(demo, list(scripts))
            address = stack.enter_context(served(service, openai_chat.routes, **options))
            client = httpx.Client(base_url=address, timeout=PATIENCE)
            return service, stack.enter_context(client)

        yield started


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("v1/chat/completions", json={**BODY, **fields})


def lines(response: httpx.Response) -> list[str]:
    """The data of a stream; every event is one line of it."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def wait_for(done: Callable[[], bool]) -> None:
    """Until it is so; fails when it never is."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def nothing_runs(service: PlayedService) -> Callable[[], bool]:
    model = service.model
    return lambda: model.started == model.closed > 0 and service.held == 0


# --- streams -----------------------------------------------------------------------------


def test_a_stream_is_one_line_an_event(play: Play) -> None:
    service, client = play([says("Hi"), says("\n\ndata: x\r\n"), ends()])
    response = chat(client, stream=True)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    *chunks, last = lines(response)
    assert last == "[DONE]"
    text = [json.loads(chunk)["choices"][0]["delta"].get("content") for chunk in chunks]
    assert text == ["", "Hi", "\n\ndata: x\r\n", None]
    wait_for(nothing_runs(service))


def test_choices_come_as_they_are_made(play: Play) -> None:
    slow: Script = [says("slow"), 0.2, ends()]
    service, client = play(slow, [says("fast"), ends()])
    chunks = [json.loads(one) for one in lines(chat(client, stream=True, n=2, seed=5))[:-1]]
    order = [one["choices"][0]["index"] for one in chunks if one["choices"][0]["finish_reason"]]
    assert order == [1, 0]
    assert [request.params.seed for request in service.model.requests] == [5, 6]
    whole = chat(client, n=3).json()["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2]


def test_a_reply_that_breaks_off_says_so_and_is_not_done(play: Play) -> None:
    breaks: tuple[tuple[Script, str], ...] = (
        ([says("Hi"), EngineError("it broke")], "it broke"),
        ([says("Hi")], "the reply broke off"),
        ([says("Hi"), RuntimeError("secret words")], "the server failed"),
    )
    for script, message in breaks:
        service, client = play(script)
        *_, last = lines(chat(client, stream=True))
        assert json.loads(last)["error"]["message"].startswith(message)
        assert json.loads(last)["error"]["type"] == "server_error"
        wait_for(nothing_runs(service))


def test_one_choice_that_breaks_ends_all(play: Play) -> None:
    service, client = play([says("Hi"), EngineError("it broke")], ENDLESS)
    assert chat(client, n=2).status_code == 503
    wait_for(nothing_runs(service))


# --- before the first byte ---------------------------------------------------------------

ERRORS: list[tuple[Exception, int, str | None]] = [
    (BusyError("full", retry_after=2.2), 429, "server_busy"),
    (EngineError("broken"), 503, "engine_failed"),
    (ContextOverflowError("too long"), 400, "context_length_exceeded"),
    (SchemaError("impossible"), 400, "invalid_schema"),
    (OptionError("top_k is -1"), 400, "invalid_value"),
    (TemplateError("refused"), 400, "invalid_messages"),
    (ModelNotFoundError("no such model"), 404, "model_not_found"),
    (Problem(418, "teapot", param="tea"), 418, None),
]


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_at_first_is_an_http_error(play: Play, stream: bool) -> None:
    service, client = play(*([error] for error, _, _ in ERRORS), [ends()])
    for error, status, code in ERRORS:
        response = chat(client, stream=stream)
        found = response.json()["error"]
        assert (response.status_code, found["code"]) == (status, code)
        assert found["message"] == str(error)
        assert response.headers.get("Retry-After") == ("3" if status == 429 else None)
    wait_for(nothing_runs(service))


@pytest.mark.parametrize("error", [RuntimeError("of prompts"), CheckpointError("of prompts")])
def test_what_nobody_expected_is_logged_without_its_words(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(secret: str) -> None:
        raise error

    words = " ".join(["the", "user's", "words"])  # source lines are in the log
    with caplog.at_level(logging.ERROR):
        try:
            fail(words)
        except (RuntimeError, CheckpointError) as exc:
            problem = explain(exc)
    assert problem.status == 500
    assert "in fail" in caplog.text
    assert type(error).__name__ in caplog.text
    for text in (caplog.text, problem.message):
        assert "of prompts" not in text
        assert "user's words" not in text


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"{}", 415),
        ({}, b"{}", 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}", 415),
        ({"Content-Type": "application/json; charset=utf-8"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"[1]", 400),
        ({"Content-Type": "application/json"}, b'"' + b"x" * 2000 + b'"', 413),
    ],
    ids=range(7),
)
def test_bodies_that_are_not_taken(
    play: Play, headers: dict[str, str], content: bytes, status: int
) -> None:
    service, client = play([ends()], limits=Limits(body_bytes=1000))
    response = client.post("v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    parts = (content[start : start + 100] for start in range(0, len(content), 100))
    chunked = client.post("v1/chat/completions", content=parts, headers=headers)
    assert chunked.status_code == status
    assert service.model.started == 0


def test_a_model_without_template_is_for_completions(demo: LLM) -> None:
    base = LLM(demo.model, _without_template(demo), {})
    with pytest.raises(Problem, match="no chat template; send its prompts to completions"):
        Ask([{"role": "user", "content": "Hi"}]).requests(base)
    assert Ask("Hi", {"raw": True}).requests(base)


def _without_template(llm: LLM) -> Any:
    class Plain:
        chat_template = None

        def __getattr__(self, name: str) -> Any:
            return getattr(llm.tokenizer, name)

    return Plain()


# --- clients that leave ------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_leaves_ends_its_stream(play: Play, count: int) -> None:
    service, client = play(ENDLESS)
    body = {**BODY, "stream": True, "n": count}
    with client.stream("POST", "v1/chat/completions", json=body) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == 10:
                break
        assert service.model.closed == 0
    wait_for(nothing_runs(service))
    assert service.model.started == count


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_ends_the_reply(play: Play, stream: bool) -> None:
    """Before the first event, as in a long prompt, and in the midst of a whole reply."""
    scripts: list[Script] = [[LONG, ends()]] if stream else [[says("Hi"), LONG, ends()]]
    service, client = play(*scripts)
    with pytest.raises(httpx.ReadTimeout):
        client.post("v1/chat/completions", json={**BODY, "stream": stream}, timeout=0.3)
    wait_for(nothing_runs(service))


def test_a_client_that_leaves_while_nothing_comes_ends_its_stream(play: Play) -> None:
    service, client = play([says("Hi"), LONG, ends()])
    body = {**BODY, "stream": True}
    with client.stream("POST", "v1/chat/completions", json=body) as response:
        assert next(response.iter_lines()).startswith("data: ")
    wait_for(nothing_runs(service))


def test_others_go_on_when_one_leaves(play: Play) -> None:
    _, client = play(ENDLESS, [says("Hi"), 0.3, says("!"), ends()])
    body = {**BODY, "stream": True}
    with client.stream("POST", "v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    assert lines(chat(client, stream=True))[-1] == "[DONE]"


# --- events ------------------------------------------------------------------------------


def test_silence_is_filled() -> None:
    async def slow() -> AsyncGenerator[bytes, None]:
        yield b"a"
        await asyncio.sleep(0.2)
        yield b"b"

    async def read() -> list[bytes]:
        return [chunk async for chunk in kept_alive(slow(), 0.02)]

    first, *filled, last = asyncio.run(read())
    assert (first, last) == (b"a", b"b")
    assert set(filled) == {KEEP_ALIVE}


def test_filling_ends_with_its_reader() -> None:
    closed = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.sleep(LONG)
            yield b"never"
        finally:
            closed.append(True)

    async def read() -> None:
        chunks = kept_alive(endless(), 0.01)
        assert await anext(chunks) == KEEP_ALIVE
        await chunks.aclose()

    asyncio.run(read())
    assert closed == [True]


def test_work_ends_with_its_client_and_otherwise_says_what_it_found() -> None:
    ended = []

    async def work(value: Any) -> Any:
        try:
            await asyncio.sleep(LONG if value is None else 0)
        finally:
            ended.append(value)
        if isinstance(value, Exception):
            raise value
        return value

    async def leaves() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def stays() -> Any:
        await asyncio.sleep(LONG)

    async def run() -> None:
        assert await while_connected(stays, work(5)) == 5
        with pytest.raises(KeyError):
            await while_connected(stays, work(KeyError("x")))
        with pytest.raises(Disconnected):
            await while_connected(leaves, work(None))

    asyncio.run(run())
    assert ended[-1] is None


def test_calls_are_objects_where_the_template_wants_them() -> None:
    prompts: list[Any] = []

    def request(prompt: Any, **options: Any) -> None:
        prompts.append(prompt)

    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    broken = {"id": "2", "function": {"name": "f", "arguments": "{"}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call, broken]}
    ask = Ask([turn], copies=0)
    for form in ("json", "xml"):
        tokenizer = SimpleNamespace(chat_template=SimpleNamespace(call_form=form))
        llm: Any = SimpleNamespace(tokenizer=tokenizer, request=request)
        ask.requests(llm)
    written = [
        [one["function"]["arguments"] for one in prompt[0]["tool_calls"]] for prompt in prompts
    ]
    assert written == [['{"a": 1}', "{"], [{"a": 1}, "{"]]
