"""Turns: history, tools, interruptions, with replies written beforehand and with the demo model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import mlx_qwen3
from mlx_qwen3 import Conversation, OptionError, Tool, ToolResult, load
from mlx_qwen3.agent.approval import Approvals, Decision
from mlx_qwen3.agent.tools import Outcome, distinct
from mlx_qwen3.demo import has_demo
from mlx_qwen3.errors import ContextOverflowError, Qwen3Error
from mlx_qwen3.text.tool_calls import ToolCall
from tests.agent.rough import rough
from tests.fakes import FakeLLM, calls, ends, says, thinks


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def answer(number: int, name: str, text: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "name": name, "content": text}


def schema(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def tool(name: str, text: str = "done", server: str = "") -> Tool:
    return Tool(name, schema(name), lambda arguments: Outcome(text), server)


def results(chat: Conversation, text: str) -> list[ToolResult]:
    return [event for event in chat.stream(text) if isinstance(event, ToolResult)]


def contents(chat: Conversation, role: str) -> list[str]:
    return [message["content"] for message in chat.messages if message["role"] == role]


# --- talking


def test_every_turn_sees_the_ones_before() -> None:
    llm = FakeLLM([thinks("Two "), thinks("twos."), says("Fo"), says("ur."), ends()], [ends()])
    chat = Conversation(llm, system="Add.", max_tokens=9)
    assert chat.send("2 + 2?").finish_reason == "stop"
    chat.send("Sure?", temperature=0.5)
    first = [{"role": "system", "content": "Add."}, user("2 + 2?")]
    reply = assistant("Four.", reasoning_content="Two twos.")
    assert llm.prompts == [first, [*first, reply, user("Sure?")]]
    assert llm.options == [{"max_tokens": 9}, {"max_tokens": 9, "temperature": 0.5}]
    assert chat.messages == [user("2 + 2?"), reply, user("Sure?"), assistant("")]


def test_a_reset_keeps_the_system_message() -> None:
    chat = Conversation(FakeLLM([ends()]), system="Add.", messages=[user("Hi")])
    chat.reset()
    assert chat.prompt() == [{"role": "system", "content": "Add."}]


def test_what_was_said_until_an_interruption_stays() -> None:
    llm = FakeLLM([thinks("Hm."), says("Once"), KeyboardInterrupt()], [says("a"), says("b")])
    chat = Conversation(llm)
    with pytest.raises(KeyboardInterrupt):
        chat.send("A story")
    kept = [user("A story"), assistant("Once", reasoning_content="Hm.")]
    assert chat.messages == kept
    events = chat.stream("More")
    next(events)
    events.close()
    assert chat.messages == [*kept, user("More"), assistant("a")]
    assert llm.closed == 2


@pytest.mark.parametrize("error", [OptionError("no"), KeyboardInterrupt(), Qwen3Error("no")])
def test_a_message_nothing_was_said_to_leaves_no_trace(error: BaseException) -> None:
    for script in (error, [error]):
        chat = Conversation(FakeLLM(script))
        with pytest.raises(type(error)):
            chat.send("Hi")
        assert chat.messages == []


def test_what_is_wrong_is_said_before_anything_happens() -> None:
    chat = Conversation(FakeLLM(OptionError("no such option")))
    with pytest.raises(OptionError):
        chat.stream("Hi")
    with pytest.raises(OptionError, match="max_steps is 0"):
        Conversation(FakeLLM(), max_steps=0)


# --- acting


def test_calls_are_run_and_their_results_read() -> None:
    asks = [thinks("I look."), says("Wait."), calls("time", zone="UTC"), calls("day")]
    llm = FakeLLM([*asks, ends("tool_calls")], [thinks("So."), says("Noon."), ends()])
    chat = Conversation(llm, tools=[tool("time", "12:00"), tool("day", "Monday")])
    kinds = [event.kind for event in chat.stream("When?")]
    assert kinds == [
        *("thinking", "answer", "tool_call", "tool_call", "end"),
        *("tool_result", "tool_result", "thinking", "answer", "end"),
    ]
    asked = assistant(
        "Wait.",
        reasoning_content="I look.",
        tool_calls=[call(1, "time", zone="UTC"), call(2, "day")],
    )
    read = [answer(1, "time", "12:00"), answer(2, "day", "Monday")]
    assert llm.prompts[1] == [user("When?"), asked, *read]
    assert chat.messages[-1] == assistant("Noon.", reasoning_content="So.")
    assert [given["tools"] for given in llm.options] == [[schema("time"), schema("day")]] * 2


def test_ids_go_on_over_turns() -> None:
    turn = ([calls("time"), ends("tool_calls")], [ends()])
    chat = Conversation(FakeLLM(*turn, *turn), tools=[tool("time")])
    chat.send("a")
    chat.send("b")
    assert [one.get("tool_call_id") for one in chat.messages if one["role"] == "tool"] == [
        "call_1",
        "call_2",
    ]


def test_a_function_is_called_with_the_models_arguments() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    llm = FakeLLM([calls("add", a=2, b=3), ends("tool_calls")], [ends()])
    chat = Conversation(llm, tools=[add])
    chat.send("2 + 3?")
    assert contents(chat, "tool") == ["5"]
    assert llm.options[0]["tools"] == [add]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (calls("add", a=1), "Error: TypeError: "),
        (calls("subtract"), "Error: there is no tool 'subtract'; there are: add"),
        (calls("add", error="tool call is not valid JSON"), "Error: tool call is not valid JSON"),
    ],
)
def test_a_call_that_fails_is_told_to_the_model(made: Any, said: str) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    chat = Conversation(FakeLLM([made, ends("tool_calls")], [ends()]), tools=[add])
    (result,) = results(chat, "?")
    assert result.is_error
    assert result.text.startswith(said)
    assert contents(chat, "tool") == [result.text]


def test_a_call_that_was_cut_off_is_not_run() -> None:
    llm = FakeLLM([calls("time", error="its end is missing"), ends("length")])
    chat = Conversation(llm, tools=[tool("time")])
    assert results(chat, "?") == []
    assert chat.messages[-1] == assistant("<tool_call>time</tool_call>")


def test_long_results_are_cut_with_a_note() -> None:
    def turn() -> Any:
        return [calls("big"), ends("tool_calls")], [ends()]

    big = tool("big", "x" * 5_000_000)
    chat = Conversation(FakeLLM(*turn()), tools=[big])
    (result,) = results(chat, "?")
    assert result.text == "x" * 20_000 + "\n[cut here: 20,000 of 5,000,000 characters are shown]"
    small = Conversation(FakeLLM(*turn(), context_length=2048), tools=[big])
    assert results(small, "?")[0].text.count("x") == 1024


def test_the_step_limit() -> None:
    again = [calls("time"), ends("tool_calls")]
    llm = FakeLLM(again, again, again, [says("Fine."), ends()])
    chat = Conversation(llm, tools=[tool("time")], max_steps=3)
    assert chat.send("?").finish_reason == "tool_calls"
    limit = "Error: not run: the limit of 3 steps is reached"
    assert contents(chat, "tool") == ["done", "done", limit]
    chat.send("Go on")
    assert llm.prompts[3][-2:] == [chat.messages[6], user("Go on")]


def test_calls_that_are_the_callers_to_answer() -> None:
    llm = FakeLLM([calls("ours"), calls("theirs"), ends("tool_calls")], [says("Good."), ends()])
    chat = Conversation(llm, tools=[tool("ours"), schema("theirs")])
    done = chat.send("?")
    assert done.finish_reason == "tool_calls"
    assert chat.messages[2:] == [answer(1, "ours", "done")]
    chat.messages.append(answer(2, "theirs", "yes"))
    chat.send()
    assert llm.prompts[1][-1] == answer(2, "theirs", "yes")
    assert chat.messages[-1] == assistant("Good.")


def test_interrupting_a_call_leaves_a_history_that_goes_on() -> None:
    def slow(arguments: Any) -> Outcome:
        raise KeyboardInterrupt

    tools = [tool("quick"), Tool("slow", schema("slow"), slow)]
    llm = FakeLLM([calls("quick"), calls("slow"), calls("quick"), ends("tool_calls")], [ends()])
    chat = Conversation(llm, tools=tools)
    with pytest.raises(KeyboardInterrupt):
        chat.send("?")
    cancelled = "The user cancelled this call."
    assert contents(chat, "tool") == ["done", cancelled, cancelled]
    chat.send("Never mind")
    assert [message["role"] for message in llm.prompts[1]] == [
        *("user", "assistant", "tool", "tool", "tool", "user"),
    ]


def test_interrupting_a_reply_that_called_already() -> None:
    llm = FakeLLM([calls("time"), KeyboardInterrupt()])
    chat = Conversation(llm, tools=[tool("time")])
    with pytest.raises(KeyboardInterrupt):
        chat.send("?")
    assert contents(chat, "tool") == ["The user cancelled this call."]


def test_an_error_after_a_call_keeps_the_call() -> None:
    llm = FakeLLM([calls("time"), ends("tool_calls")], ContextOverflowError("full"))
    chat = Conversation(llm, tools=[tool("time")])
    with pytest.raises(ContextOverflowError):
        chat.send("?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool"]


# --- approval


def test_decisions_last_as_long_as_they_say() -> None:
    decisions: list[Decision] = ["once", "no", "always", "never"]
    asked: list[str] = []

    def ask(made: ToolCall) -> Decision:
        asked.append(made.name)
        return decisions[len(asked) - 1]

    approvals = Approvals(ask)
    allowed = [approvals(ToolCall(name)) for name in ("a", "a", "a", "a", "b", "b", "a")]
    assert allowed == [True, False, True, True, False, False, True]
    assert asked == ["a", "a", "a", "b"]


def test_a_refused_call_is_not_run_and_the_model_is_told() -> None:
    def never(arguments: Any) -> Outcome:
        raise AssertionError("it ran")

    llm = FakeLLM([calls("rm"), ends("tool_calls")], [says("Then not."), ends()])
    chat = Conversation(llm, tools=[Tool("rm", schema("rm"), never)], approve=lambda _: False)
    (result,) = results(chat, "Clean up")
    assert (result.text, result.is_error) == ("The user did not allow this call.", False)
    assert chat.messages[-1] == assistant("Then not.")


# --- names


def test_tools_of_servers_that_share_a_name_bear_the_servers() -> None:
    found = distinct(
        [
            tool("read", server="my files"),
            tool("read", server="web"),
            tool("write", server="web"),
            tool("web_read"),
        ]
    )
    assert [one.name for one in found] == ["my_files_read", "web_read_2", "write", "web_read"]
    assert isinstance(found[0].offer, dict)
    assert found[0].offer["function"]["name"] == "my_files_read"


def test_a_tool_of_ones_own_keeps_its_name() -> None:
    found = distinct([tool("read"), tool("read", server="web")])
    assert [one.name for one in found] == ["read", "web_read"]
    with pytest.raises(OptionError, match="two tools are called read"):
        distinct([tool("read"), tool("read")])


@pytest.mark.parametrize("wrong", [5, {"function": {}}, {}])
def test_what_is_no_tool(wrong: Any) -> None:
    with pytest.raises(OptionError, match="tool"):
        Conversation(FakeLLM(), tools=[wrong])


# --- files


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    llm = FakeLLM([calls("time", zone="東京"), ends("tool_calls")], [says("Noon."), ends()])
    chat = Conversation(llm, system="Be brief.", tools=[tool("time")])
    chat.send("When?")
    chat.save(path)
    chat.save(path)  # over itself
    assert "東京" in path.read_text(encoding="utf-8")
    other = Conversation(FakeLLM(), system="Old.", messages=[user("Old")])
    other.load(path)
    assert (other.system, other.messages) == ("Be brief.", chat.messages)
    assert json.loads(path.read_text())[0] == {"role": "system", "content": "Be brief."}
    assert [one.name for one in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize("text", ["{", "{}", '["Hi"]', '[{"role": "robot", "content": ""}]', "5"])
def test_files_that_hold_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    chat = Conversation(FakeLLM(), messages=[user("Hi")])
    with pytest.raises(OptionError, match=r"other\.json"):
        chat.load(path)
    with pytest.raises(OptionError, match=r"other\.json"):
        chat.save(path)
    assert path.read_text() == text
    assert chat.messages == [user("Hi")]


def test_files_that_cannot_be(tmp_path: Path) -> None:
    chat = Conversation(FakeLLM())
    for use in (chat.load, chat.save):
        with pytest.raises(OptionError, match="No such file"):
            use(tmp_path / "nowhere" / "chat.json")


def test_a_list_of_messages_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text('{"model": "x", "messages": [{"role": "user", "content": "Hi"}]}')
    chat = Conversation(FakeLLM())
    chat.load(path)
    assert (chat.system, chat.messages) == (None, [user("Hi")])


# --- servers


def test_a_server_dies_and_the_conversation_goes_on() -> None:
    pytest.importorskip("mcp")
    llm = FakeLLM(
        [calls("crash"), ends("tool_calls")],
        [calls("echo", a=1), ends("tool_calls")],
        [says("Well."), ends()],
    )
    with Conversation(llm, mcp={"mcpServers": {"a": rough()}}) as chat:
        crash, echo = results(chat, "?")
    assert crash.text == 'Error: the server a has ended (its last words: "out of cheese")'
    assert (crash.is_error, crash.server) == (True, "a")
    assert echo.text == '{"a": 1}'
    assert chat.messages[-1] == assistant("Well.")


# --- with a model


@pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not in this checkout")
def test_the_template_keeps_reasoning_within_the_loop_and_drops_it_after() -> None:
    pytest.importorskip("mcp_server_time")
    llm = load("demo")
    entry = {"command": sys.executable, "args": ["-m", "mcp_server_time"]}
    with Conversation(llm, mcp={"mcpServers": {"time": entry}}, temperature=0.0) as chat:
        (result,) = results(chat, "What time is it in Tokyo?")
        clock = json.loads(result.text)["datetime"][11:16]
        assert chat.messages[-1]["content"] == f"It is {clock} in Tokyo."
        thought = chat.messages[1]["reasoning_content"]
        within = llm.render(chat.messages[:3])
        assert thought in within
        assert thought not in llm.render([*chat.messages, user("Thanks")])
        chat.send("What is 27 + 58?")
        assert "85" in chat.messages[-1]["content"]


def test_importing_a_conversation_needs_no_mcp() -> None:
    import subprocess

    script = "from mlx_qwen3 import Conversation; import sys; print('mcp' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"
    assert mlx_qwen3.Conversation is Conversation
