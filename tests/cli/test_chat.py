"""`mlx-qwen3 chat`: turns, commands, and everything that may interrupt them."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import Conversation, McpServers, Tool, ToolCall
from mlx_qwen3.agent.approval import Approvals
from mlx_qwen3.agent.tools import Outcome
from mlx_qwen3.cli.chat import _decide, converse
from mlx_qwen3.cli.session import Session
from mlx_qwen3.cli.slash import COMMANDS, find_command
from mlx_qwen3.demo import has_demo
from mlx_qwen3.errors import ContextOverflowError, OptionError, Qwen3Error
from mlx_qwen3.text.template import ChatTemplate
from tests.agent.rough import SCRIPT, is_gone, rough
from tests.cli.terminals import CTRL_C, CTRL_D, UP, Command, Terminal
from tests.fakes import FakeLLM, calls, ends, says, thinks

QWEN3_TEMPLATE = Path(__file__).parent.parent / "text" / "templates" / "thinking_2507.jinja"


class Typed:
    """Lines from a script; an exception in it is what a key press raises."""

    def __init__(self, *lines: str | BaseException, interactive: bool = True) -> None:
        self.interactive = interactive
        self.asked: list[str] = []
        self._lines = [*lines, EOFError()]

    def read(self) -> str:
        line = self._lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def ask(self, question: str) -> str:
        self.asked.append(question)
        return self.read()


def open_session(llm: FakeLLM, **settings: Any) -> Session:
    """A session whose replies go to a text."""
    return Session(Conversation(llm, **settings), io.StringIO())


def talk(llm: FakeLLM, *lines: str | BaseException, **settings: Any) -> Session:
    """A conversation in which these lines are typed."""
    session = open_session(llm, **settings)
    converse(session, Typed(*lines))
    return session


def printed(session: Session) -> str:
    assert isinstance(session.out, io.StringIO)
    return session.out.getvalue()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# --- history


def test_every_turn_sees_the_ones_before() -> None:
    llm = FakeLLM([thinks("Two of "), thinks("them."), says("Four"), says("."), ends()], [ends()])
    session = talk(llm, "2 + 2?", "Sure?", system="Add.")
    first = [{"role": "system", "content": "Add."}, user("2 + 2?")]
    reply = assistant("Four.", reasoning_content="Two of them.")
    assert llm.prompts == [first, [*first, reply, user("Sure?")]]
    assert printed(session) == "Four.\n"


def test_calls_are_kept_as_calls() -> None:
    llm = FakeLLM([says("Let me look."), calls("time", zone="Asia/Tokyo"), ends("tool_calls")])
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "time", "arguments": {"zone": "Asia/Tokyo"}},
    }
    tools = [{"name": "time"}]  # nobody here answers its calls
    assert talk(llm, "What time is it?", tools=tools).chat.messages == [
        user("What time is it?"),
        assistant("Let me look.", tool_calls=[call]),
    ]


def test_a_call_that_made_no_sense_is_kept_as_text() -> None:
    llm = FakeLLM([says("Well:"), calls("time", error="has no name"), ends()])
    assert talk(llm, "Hi").chat.messages[1] == assistant("Well:\n<tool_call>time</tool_call>")


def test_an_empty_reply_is_a_reply() -> None:
    assert talk(FakeLLM([ends()]), "Hi").chat.messages == [user("Hi"), assistant("")]


def test_options_go_with_every_turn() -> None:
    llm = FakeLLM([ends()], [ends()])
    talk(llm, "a", "b", max_tokens=5, kv_bits=8)
    assert llm.options == [{"max_tokens": 5, "kv_bits": 8}] * 2


def test_the_template_drops_earlier_thinking() -> None:
    """What is stored is what templates expect: Qwen3's own leave old thoughts out."""
    session = talk(FakeLLM([thinks("Hm."), says("4"), ends()]), "2 + 2?")
    template = ChatTemplate(QWEN3_TEMPLATE.read_text(), {"eos_token": "<|im_end|>"})
    text = template.render([*session.chat.messages, user("Sure?")])
    assert "<|im_start|>assistant\n4<|im_end|>" in text
    assert "Hm." not in text


# --- commands


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/reset", ("/reset", "")),
        ("/reset  ", ("/reset", "")),
        ("/system You are brief.", ("/system", "You are brief.")),
        ("/bogus", ("/bogus", "")),
        ("/think", ("/think", "")),
        ("/no_think what is 2 + 2?", None),  # the model's own switch
        ("what is 2 + 2? /no_think", None),
        ("/usr/bin/env: what is it?", None),
        (" /reset", None),
        ("/", None),
        ("", None),
    ],
)
def test_what_is_a_command(line: str, command: tuple[str, str] | None) -> None:
    assert find_command(line) == command


def test_soft_switches_in_a_message_reach_the_model_untouched() -> None:
    llm = FakeLLM([ends()], [ends()])
    talk(llm, "/no_think 2 + 2?", "3 + 3? /think")
    assert [prompt[-1]["content"] for prompt in llm.prompts] == [
        "/no_think 2 + 2?",
        "3 + 3? /think",
    ]
    assert llm.options == [{}, {}]


def test_switching_thinking(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM([ends()], [ends()], [ends()])
    talk(llm, "a", "/no_think", "b", "/think", "c")
    assert llm.options == [{}, {"thinking": False}, {"thinking": True}]
    assert capsys.readouterr().err == "thinking is off\nthinking is on\n"


@pytest.mark.parametrize(
    ("mode", "can", "cannot"), [("always", "/think", "/no_think"), ("never", "/no_think", "/think")]
)
def test_a_model_that_cannot_switch(
    capsys: pytest.CaptureFixture[str], mode: str, can: str, cannot: str
) -> None:
    session = talk(FakeLLM([ends()], mode=mode), can, cannot, "a")
    assert session.chat.options == {"thinking": can == "/think"}
    assert capsys.readouterr().err.splitlines() == [
        f"thinking is {'on' if can == '/think' else 'off'}",
        f"this model {mode} thinks: that cannot be switched",
    ]


def test_reset_forgets_the_turns_only() -> None:
    llm = FakeLLM([says("Hello"), ends()], [ends()])
    talk(llm, "Hi", "/no_think", "/reset", "Again", system="Be brief.")
    assert llm.prompts[1] == [{"role": "system", "content": "Be brief."}, user("Again")]
    assert llm.options[1] == {"thinking": False}


def test_the_system_message(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM([says("Hello"), ends()], [ends()])
    talk(llm, "/system", "Hi", "/system Rhyme, always.", "/system", "Again")
    assert llm.prompts[0] == [user("Hi")]
    assert llm.prompts[1][0] == {"role": "system", "content": "Rhyme, always."}
    assert len(llm.prompts[1]) == 4
    assert capsys.readouterr().err.splitlines() == [
        "no system message",
        "the system message is set",
        "system: Rhyme, always.",
    ]


@pytest.mark.parametrize("line", ["/bogus", "/bogus with words", "/reset everything", "/exit now"])
def test_a_command_that_cannot_be_is_not_sent(
    capsys: pytest.CaptureFixture[str], line: str
) -> None:
    llm = FakeLLM([ends()])
    session = talk(llm, line, "Hi")
    assert session.chat.messages[0] == user("Hi")
    said = capsys.readouterr().err
    assert line.split()[0] in said
    assert said.count("\n") == 1


def test_a_space_in_front_makes_it_a_message() -> None:
    assert talk(FakeLLM([ends()]), " /bogus ").chat.messages[0] == user("/bogus")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    talk(FakeLLM(), "/help")
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) < 80
    listed = [line.split()[0] for line in lines]
    assert listed == list(COMMANDS)
    wanted = "/thinking /think /no_think /system /mcp /tokens /copy /save /load /reset /help /exit"
    assert listed == wanted.split()


def test_exit_leaves() -> None:
    assert talk(FakeLLM(), "/exit", "Hi").chat.messages == []


def test_empty_lines_are_nothing() -> None:
    assert talk(FakeLLM(), "", "   ").chat.messages == []


@pytest.mark.parametrize(
    ("line", "options", "said"),
    [
        ("/thinking on", {"thinking": True}, "thinking is on"),
        ("/thinking off", {"thinking": False}, "thinking is off"),
        (
            "/thinking 300",
            {"thinking": True, "thinking_budget": 300},
            "thinking is on, for at most 300 tokens",
        ),
        ("/thinking 0", {}, "/thinking 0: expected on, off, a number"),
        ("/thinking maybe", {}, "/thinking maybe: expected on, off, a number"),
        ("/thinking fold", {}, "thoughts are folded"),
    ],
)
def test_thinking_has_a_switch(
    capsys: pytest.CaptureFixture[str], line: str, options: dict[str, Any], said: str
) -> None:
    llm = FakeLLM([ends()])
    talk(llm, line, "Hi")
    assert llm.options == [options]
    assert capsys.readouterr().err.startswith(said)


def test_a_switch_lifts_the_budget() -> None:
    llm = FakeLLM([ends()])
    talk(llm, "/thinking 300", "/thinking on", "Hi")
    assert llm.options == [{"thinking": True}]


def test_the_last_thought_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM([thinks("Hm."), says("4"), ends()])
    talk(llm, "/thinking", "2 + 2?", "/thinking 9", "/thinking")
    assert capsys.readouterr().err.splitlines() == [
        "thinking is as the model is made",
        "nothing was thought yet",
        "thinking is on, for at most 9 tokens",
        "thinking is on, for at most 9 tokens",
        "Hm.",
    ]


def test_saving_and_loading(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    talk(FakeLLM([says("4"), ends()]), "2 + 2?", f"/save {path}", system="Add.")
    llm = FakeLLM([ends()])
    talk(llm, f"/load {path}", "Sure?", "/save", "/load", f"/load {tmp_path}/none.json")
    assert llm.prompts[0] == [
        {"role": "system", "content": "Add."},
        user("2 + 2?"),
        assistant("4"),
        user("Sure?"),
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [f"saved 2 messages to {path}", f"loaded 2 messages from {path}"]
    assert said[2:4] == ["/save needs a file's name", "/load needs a file's name"]
    assert said[4].startswith("error: ")
    assert "none.json" in said[4]


def test_copying_the_last_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copied"
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\n/bin/cat > {copied}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    talk(FakeLLM([says("It is 85."), ends()]), "/copy", "27 + 58?", "/copy")
    said = ["there is no answer to copy yet", "copied 9 characters through pbcopy"]
    assert capsys.readouterr().err.splitlines() == said
    assert copied.read_text() == "It is 85."
    program.unlink()
    talk(FakeLLM([says("It is 85."), ends()]), "27 + 58?", "/copy")
    assert capsys.readouterr().err.startswith("no clipboard: ")


def test_no_servers(capsys: pytest.CaptureFixture[str]) -> None:
    talk(FakeLLM(), "/mcp")
    assert capsys.readouterr().err == "no MCP servers: chat --mcp servers.json names some\n"


def test_servers_and_what_they_offer(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mcp")
    off = {"command": "a", "disabled": True}
    entries = {"a": rough(), "b": rough(), "gone": {"command": "no-such-program"}, "off": off}
    with McpServers({"mcpServers": entries}) as servers:
        talk(FakeLLM(), "/mcp", mcp=servers)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a: ready"
    assert "  tool a_echo" in lines
    assert "  tool b_echo" in lines
    assert any(line.startswith("gone: failed: ") for line in lines)
    assert lines[-1] == "off: disabled"


# --- approval


@pytest.mark.parametrize(
    ("answers", "ran"),
    [
        (["o", "o"], 2),
        (["once", "n"], 1),
        (["a"], 2),
        (["v"], 0),
        (["yes", "", "N", "never"], 0),
    ],
)
def test_each_call_is_asked_about(answers: list[str], ran: int) -> None:
    again = [calls("look", path="x"), ends("tool_calls")]
    done: list[Any] = []
    look = Tool("look", {"name": "look"}, lambda given: done.append(given) or Outcome("seen"))
    chat = Conversation(FakeLLM(again, again, [ends()]), tools=[look])
    lines = Typed(*answers)
    asks = Approvals(functools.partial(_decide, lines))
    Session(chat, io.StringIO(), asks).ask("Hi")
    assert len(done) == ran
    assert lines.asked == ['Run look {"path": "x"}? [o]nce, [a]lways, [n]o, ne[v]er: '] * len(
        answers
    )


def test_what_is_asked_about_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    lines = Typed("n")
    _decide(lines, ToolCall("a\x1b[2J\nb", {"x\x1b": "\x07" + "y" * 99}))
    (asked,) = lines.asked
    assert all(char.isprintable() for char in asked)
    assert len(asked) < 90


# --- interruptions


def test_stopping_a_reply_keeps_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM([thinks("Long."), says("Once upon"), KeyboardInterrupt()], [ends()])
    session = talk(llm, "A story", "Go on")
    said = assistant("Once upon", reasoning_content="Long.")
    assert llm.prompts[1] == [user("A story"), said, user("Go on")]
    assert printed(session) == "Once upon\n"
    assert capsys.readouterr().err == "(stopped)\n"
    assert llm.closed == 2


def test_stopping_before_anything_was_said_leaves_no_trace() -> None:
    llm = FakeLLM([KeyboardInterrupt()], [ends()])
    talk(llm, "Oops", "Hi")
    assert llm.prompts[1] == [user("Hi")]


def test_stopping_while_printing_stops_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may strike anywhere, also where the generator only waits to be asked again."""
    llm = FakeLLM([says("Once"), says(" upon")])
    session = open_session(llm)
    monkeypatch.setattr(session.out, "flush", interrupt_once())
    converse(session, Typed("A story"))
    assert llm.closed == 1
    assert session.chat.messages == [user("A story"), assistant("Once")]


def interrupt_once() -> Any:
    pending = [KeyboardInterrupt()]

    def flush() -> None:
        if pending:
            raise pending.pop()

    return flush


def test_ctrl_c_at_the_prompt_says_how_to_leave(capsys: pytest.CaptureFixture[str]) -> None:
    session = talk(FakeLLM([says("Hello"), ends()]), KeyboardInterrupt(), "Hi")
    assert len(session.chat.messages) == 2
    assert "Ctrl-D or /exit" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [("Hi",), (KeyboardInterrupt(),)])
def test_nobody_is_there_to_stop_only_the_reply(lines: tuple[str | BaseException, ...]) -> None:
    session = open_session(FakeLLM([says("Hello"), KeyboardInterrupt()]))
    with pytest.raises(KeyboardInterrupt):
        converse(session, Typed(*lines, interactive=False))


@pytest.mark.parametrize("script", [OptionError("no\nsuch thing"), [OptionError("no\nsuch thing")]])
def test_an_error_ends_the_turn_only(capsys: pytest.CaptureFixture[str], script: Any) -> None:
    llm = FakeLLM(script, [says("Hello"), ends()])
    session = talk(llm, "Hi", "Again")
    assert session.chat.messages == [user("Again"), assistant("Hello")]
    assert capsys.readouterr().err == "error: no such thing\n"


def test_an_error_in_the_midst_keeps_what_was_said() -> None:
    llm = FakeLLM([says("Hello"), Qwen3Error("broken")])
    assert talk(llm, "Hi").chat.messages == [user("Hi"), assistant("Hello")]


def test_a_conversation_that_has_grown_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    full = ContextOverflowError("the prompt's 600 tokens do not fit the context of 512; shorten it")
    llm = FakeLLM([says("Hello"), ends()], full, [ends()])
    session = talk(llm, "Hi", "More", "/reset", "More")
    said = capsys.readouterr().err.splitlines()[0]
    assert "600 tokens do not fit the context of 512" in said
    assert "shorten" not in said
    assert "/reset" in said
    assert "--max-kv-size" in said
    assert session.chat.messages == [user("More"), assistant("")]


# --- the command


def chat(*args: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mlx_qwen3.cli", "chat", *args]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def test_piped(checkpoint: Path) -> None:
    """Each line is a turn; stdout holds the answers and nothing else."""
    lines = b"/system Be brief.\nHi\n\xff\n/nothing\n\nBye"
    args = ("-m", str(checkpoint), "--max-tokens", "12", "--seed", "1")
    run = chat(*args, stdin=lines)
    assert run.returncode == 0
    assert run.stdout.endswith(b"\n")
    assert b"> " not in run.stdout
    assert b"\x1b" not in run.stderr
    assert [line.split(b":")[0] for line in run.stderr.splitlines()] == [
        b"the system message is set",
        b"unknown command /nothing",
    ]


def test_piped_lines_are_answered_one_by_one(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is generate's own: the same prompt, the same seed."""
    options = ("-m", str(checkpoint), "--max-tokens", "12", "--seed", "1")
    alone = command("generate", "Hi", *options)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/reset\nHi\n"))
    both = command("chat", *options)
    assert both.out == alone.out * 2
    assert (both.code, both.err) == (0, "the conversation so far is forgotten\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--max-tokens", "9999"], "do not fit the context"),
        (["-m", "./no-such-folder"], "no-such-folder"),
    ],
)
def test_what_would_spoil_every_turn_is_said_at_once(
    command: Command, checkpoint: Path, args: list[str], said: str
) -> None:
    run = command("chat", "-m", str(checkpoint), *args)
    assert (run.code, run.out, run.err.count("\n")) == (1, "", 1)
    assert said in run.err


def test_a_base_model_cannot_chat(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    base = shutil.copytree(checkpoint, tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    run = command("chat", "-m", str(base))
    assert (run.code, run.err.count("\n")) == (1, 1)
    assert "no chat template" in run.err


def test_without_a_model_it_is_the_demo(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_qwen3.hub.resolve", lambda name, **_: checkpoint)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    run = command("chat")
    assert run.code == 0
    assert run.err.startswith("no --model given")
    assert run.err.count("\n") == 1


def test_on_a_terminal(thinker: Path) -> None:
    """A whole conversation as a person has it, keys and all."""
    with Terminal("chat", "-m", str(thinker), "--max-kv-size", "300") as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.wait_for_prompt()
        terminal.type("Hello\r")
        terminal.wait_for("thinking")
        terminal.wait_for("tokens")
        terminal.type(CTRL_C)
        assert "thought for" in terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        terminal.type("/no_think\r")
        terminal.wait_for("this model always thinks")
        terminal.wait_for_prompt()
        terminal.type(UP + UP)
        terminal.wait_for("Hello")
        terminal.type("\r")
        terminal.wait_for("thinking")
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert terminal.picture().cursor.x == 0


def test_figures_on_a_terminal(checkpoint: Path) -> None:
    with Terminal("chat", "-m", str(checkpoint), "--max-tokens", "5") as terminal:
        terminal.wait_for_prompt()
        terminal.type("Hello\r")
        terminal.wait_for("tokens/s")
        terminal.wait_for_prompt()
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
    assert re.search(r"\d+ tokens read .* tokens/s · peak memory [\d.]+ MB", terminal.screen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("busy", [False, True])
def test_no_server_outlives_a_chat_that_is_told_to_go(
    thinker: Path, tmp_path: Path, number: signal.Signals, busy: bool
) -> None:
    pytest.importorskip("mcp")
    pids = tmp_path / "pids"
    script = f"echo $$ >> {pids}; exec {sys.executable} {SCRIPT} stubborn"
    servers = {"a": {"command": "sh", "args": ["-c", script]}}
    file = tmp_path / "servers.json"
    file.write_text(json.dumps({"mcpServers": servers}))
    with Terminal(
        "chat", "-m", str(thinker), "--max-kv-size", "300", "--mcp", str(file)
    ) as terminal:
        terminal.wait_for_prompt()
        if busy:
            terminal.type("Hello\r")
            terminal.wait_for("thinking")
        terminal.process.send_signal(number)
        assert terminal.wait_for_end() == 128 + number
    assert is_gone(int(pids.read_text()))


# --- with a model that knows something


@pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not in this checkout")
def test_the_demo_in_conversation(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "What is 27 + 58?\n/reset\nWhat is 3 + 4?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    run = command("chat", "--seed", "1")
    assert run.code == 0
    assert "85" in run.out
    assert "7" in run.out.splitlines()[-1]


@pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not in this checkout")
def test_the_demo_asks_a_real_server_for_the_time(tmp_path: Path) -> None:
    pytest.importorskip("mcp_server_time")
    time = {"command": sys.executable, "args": ["-m", "mcp_server_time"]}
    entries = {"time": time, "broken": {"command": "no-such-program-anywhere"}}
    file = tmp_path / "servers.json"
    file.write_text(json.dumps({"mcpServers": entries}))
    question = b"What time is it in Tokyo?\n"
    options = ("--mcp", str(file), "--temperature", "0")
    run = chat(*options, "--yes", stdin=question)
    assert run.returncode == 0
    answer = re.fullmatch(r"It is (\d\d:\d\d) in Tokyo\.\n", run.stdout.decode())
    assert answer is not None
    notes = run.stderr.decode().splitlines()
    assert notes[1].startswith("MCP server broken failed: ")
    assert notes[2] == 'calls get_current_time {"timezone": "Asia/Tokyo"}'
    assert notes[3].startswith("get_current_time -> {")
    assert answer[1] in notes[3]
    refused = chat(*options, stdin=question)
    assert "get_current_time was not run: nobody is there to allow it" in refused.stderr.decode()
    assert not re.search(r"\d\d:\d\d", refused.stdout.decode())


def test_a_list_of_servers_that_is_none(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    file.write_text("[]")
    run = command("chat", "--mcp", str(file))
    assert (run.code, run.out) == (1, "")
    assert "servers.json: holds a list" in run.err


@pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not in this checkout")
def test_tokens(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/tokens\nWhat is 27 + 58?\n/tokens\n"))
    run = command("chat", "--seed", "1")
    lines = [line for line in run.err.splitlines() if "token" in line]
    assert lines[0].startswith("the conversation is 0 tokens long, 0% of the context of ")
    read, written = re.findall(r"so far (\d+) read and (\d+) written", run.err)[1]
    assert int(read) > 0
    assert int(written) > 0
    assert "in 1 reply" in run.err


def test_a_draft_model_is_loaded_with_the_model(command: Command, checkpoint: Path) -> None:
    done = command("chat", "-m", "demo", "--draft", str(checkpoint))
    assert done.code == 1
    assert "draft" in done.err
