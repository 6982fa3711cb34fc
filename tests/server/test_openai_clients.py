"""Programs written for OpenAI's API, against ours: LangChain, OpenAI's agents, `llm`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from mlx_qwen3.server import openai_chat, openai_completions, openai_models
from tests.server.services import real, served

QUESTION = "What is 27 + 58?"
ANSWER = "27 + 58 = 85."
ASK_TIME = "What time is it in Tokyo?"
TOKYO = '{"timezone": "Asia/Tokyo", "datetime": "2025-03-04T15:30:00+09:00", "is_dst": false}'
PATIENCE = 120  # seconds: these clients take long to import


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the demo model, its OpenAI API."""
    apis = (openai_chat.routes, openai_completions.routes, openai_models.routes)
    with served(real(), *apis) as found:
        yield f"{found}v1"


class Place(pydantic.BaseModel):
    """A place."""

    city: Literal["Paris", "Tokyo"]
    capital: bool


# --- LangChain ---------------------------------------------------------------------------


@pytest.fixture
def langchain(address: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("langchain_openai", exc_type=ImportError)
    return module.ChatOpenAI(base_url=address, api_key="none", model="demo", temperature=0)


def test_langchain_invokes_and_streams(langchain: Any) -> None:
    assert langchain.invoke(QUESTION).content == ANSWER
    chunks = list(langchain.stream(QUESTION, stream_usage=True))
    assert len(chunks) > 5
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    used = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert used[-1]["output_token_details"]["reasoning"] > 50


def test_langchain_calls_tools(langchain: Any) -> None:
    messages = pytest.importorskip("langchain_core.messages")

    def get_current_time(timezone: str) -> str:
        """Get current time in a specific timezone"""
        return TOKYO

    bound = langchain.bind_tools([get_current_time])
    asked = bound.invoke(ASK_TIME)
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_current_time", {"timezone": "Asia/Tokyo"})
    result = messages.ToolMessage(get_current_time(**call["args"]), tool_call_id=call["id"])
    answer = bound.invoke([messages.HumanMessage(ASK_TIME), asked, result])
    assert "15:30" in answer.content
    streamed = None
    for chunk in bound.stream(ASK_TIME):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert streamed.tool_calls[0]["args"] == {"timezone": "Asia/Tokyo"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structures_answers(langchain: Any, method: str) -> None:
    found = langchain.with_structured_output(Place, method=method).invoke(QUESTION)
    assert isinstance(found, Place)


# --- OpenAI's agents ---------------------------------------------------------------------


def test_an_agent_runs_its_tool(address: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agents = pytest.importorskip("agents", exc_type=ImportError)
    openai = pytest.importorskip("openai")
    called = []

    def get_current_time(timezone: str) -> str:
        """Get current time in a specific timezone"""
        called.append(timezone)
        return TOKYO

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:
            agent = agents.Agent(
                name="Clock",
                model=agents.OpenAIChatCompletionsModel("demo", client),
                model_settings=agents.ModelSettings(temperature=0),
                tools=[agents.function_tool(get_current_time)],
            )
            settings = agents.RunConfig(tracing_disabled=True)
            whole = await agents.Runner.run(agent, ASK_TIME, run_config=settings)
            streamed = agents.Runner.run_streamed(agent, ASK_TIME, run_config=settings)
            async for _ in streamed.stream_events():
                pass
            return [str(whole.final_output), str(streamed.final_output)]

    for answer in asyncio.run(run()):
        assert "15:30" in answer
    assert called == ["Asia/Tokyo", "Asia/Tokyo"]


# --- simonw's llm ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
def test_llm_asks_a_model_it_was_told_of(address: str, tmp_path: Path, way: str) -> None:
    pytest.importorskip("llm", exc_type=ImportError)
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: qwen\n  model_name: demo\n  api_base: {address}\n  api_key_name: none\n"
    )
    (tmp_path / "keys.json").write_text('{"none": "none"}')
    command = [sys.executable, "-m", "llm", "-m", "qwen", "-o", "temperature", "0", QUESTION]
    done = subprocess.run(
        [*command, *(["--no-stream"] if way == "--no-stream" else [])],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ANSWER), done.stderr
