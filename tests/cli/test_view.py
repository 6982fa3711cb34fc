"""A chat on a real terminal, with a model that says what it is told to: what a person sees."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.scripted import START
from tests.cli.terminals import CTRL_C, CTRL_D, UP, Terminal

Reply = list[list[str]]
Chat = Callable[..., Terminal]

PASTE, PASTED = "\x1b[200~", "\x1b[201~"
ALT_ENTER = "\x1b\r"
THOUGHT = "One thing.\nAnother thing.\nA third.\nA fourth.\nA fifth."


def call(name: str, **arguments: Any) -> list[str]:
    return ["call", json.dumps([name, arguments])]


def says(text: str) -> Reply:
    return [["answer", text], ["end", "stop"]]


@pytest.fixture
def chat(tmp_path: Path) -> Chat:
    """chat(reply, ...): a terminal on which the replies will be given, one after the other."""

    def start(*replies: Reply, **more: Any) -> Terminal:
        script = tmp_path / "script.json"
        script.write_text(json.dumps(replies))
        return Terminal(str(script), start=START, **more)

    return start


def seen(terminal: Terminal) -> str:
    """What is on the screen, figures left out."""
    text = "\n".join(terminal.lines).rstrip()
    return re.sub(r"\n\n\d+ tokens read[^>]*\n\n>", "\n\n>", text)


def turn(terminal: Terminal, text: str) -> None:
    """Type a message and wait for the end of the turn."""
    terminal.type(f"{text}\r")
    terminal.wait_for("tokens/s")
    terminal.wait_for_prompt()


@pytest.mark.parametrize("columns", [40, 100])
def test_a_turn_with_everything(chat: Chat, columns: int) -> None:
    first = [["thinking", THOUGHT], ["answer", "I **look**."]]
    calls = [call("look", says="a\nb\nc\nd\ne\nf\ng\nh"), call("look", fails=True, says="gone")]
    replies = ([*first, *calls, ["end", "tool_calls"]], says("# Found\n\n- it\n- all"))
    with chat(*replies, columns=columns) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Look\r")
        for answer in "oa":
            terminal.wait_for("[o]nce")
            terminal.type(f"{answer}\r")
        terminal.wait_for("tokens/s")
        terminal.wait_for_prompt()
        questions = re.compile(r"Run look[^└]*?: ([oa])\n")
        rows = re.sub(questions, r"Run look? \1\n", seen(terminal)).split("\n")
    calls_start = rows.index(next(row for row in rows if row.startswith("●")))
    assert rows[:calls_start] == ["", "> Look", "", "thought for 18 tokens", "", "I look.", ""]
    asked = rows.index("Run look? o")
    assert [row for row in rows[asked:] if row] == [
        "Run look? o",
        "  └ look: a",
        *("    b", "    c", "    d", "    e"),
        "    … 3 more lines",
        "Run look? a",
        "  └ look: Error: gone",
        "Found",
        " • it",
        " • all",
        ">",
    ]


def test_a_thought_is_seen_while_it_lasts_and_then_folded(chat: Chat) -> None:
    thought = [["thinking", THOUGHT], ["sleep", "0.5"], ["thinking", "!"], ["sleep", "1"]]
    with chat([*thought, *says("So.")]) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Think\r")
        terminal.wait_for("fifth.!")
        during = seen(terminal)
        terminal.wait_for_prompt()
        after = seen(terminal)
    assert re.search(r"thinking \d+ tokens\n│ Another thing\.\n│ A third\.", during)
    assert "One thing." not in during
    assert after == "\n> Think\n\nthought for 19 tokens\n\nSo.\n\n>"


def test_thoughts_may_stay(chat: Chat) -> None:
    with chat([["thinking", THOUGHT], *says("So.")], says("Bye.")) as terminal:
        terminal.wait_for_prompt()
        terminal.type("/thinking show\r")
        terminal.wait_for_prompt()
        turn(terminal, "Think")
        shown = "\n".join(f"│ {line}" for line in THOUGHT.split("\n"))
        assert f"{shown}\nthought for 18 tokens\n\nSo." in seen(terminal)


def test_ctrl_c_cancels_a_call_and_the_chat_goes_on(chat: Chat) -> None:
    slow = [call("wait", seconds=60), ["end", "tool_calls"]]
    with chat(slow, says("Fine.")) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Wait\r")
        terminal.wait_for("[o]nce")
        terminal.type("once\r")
        terminal.wait_for("running wait")
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        assert "running" not in seen(terminal)
        turn(terminal, "Never mind")
        assert seen(terminal).endswith("> Never mind\n\nFine.\n\n>")


def test_ctrl_c_at_the_question_refuses_the_call(chat: Chat) -> None:
    with chat([call("wait", seconds=60), ["end", "tool_calls"]]) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Wait\r")
        terminal.wait_for("[o]nce")
        terminal.type("what?\r")
        terminal.wait_for("[o]nce")
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()


def test_what_is_typed_meanwhile_comes_after_the_reply(chat: Chat) -> None:
    with chat([["answer", "One "], ["sleep", "1"], *says("two")], says("Three")) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Count\r")
        terminal.wait_for("One")
        terminal.type("Go on")
        terminal.wait_for("tokens/s")
        terminal.wait_for("Go on")
        terminal.type("\r")
        terminal.wait_for("Three")
        terminal.wait_for_prompt()
        assert seen(terminal) == "\n> Count\n\nOne two\n\n> Go on\n\nThree\n\n>"


@pytest.mark.parametrize(
    "keys", [f"one{ALT_ENTER}two\r", "one\\\rtwo\r", f"{PASTE}one\rtwo{PASTED}\r"]
)
def test_a_message_of_two_lines(chat: Chat, tmp_path: Path, keys: str) -> None:
    path = tmp_path / "chat.json"
    with chat(says("Fine.")) as terminal:
        terminal.wait_for_prompt()
        terminal.type(keys)
        terminal.wait_for("tokens/s")
        terminal.wait_for_prompt()
        assert "> one\n  two\n\nFine." in seen(terminal)
        terminal.type(f"/save {path}\r")
        terminal.wait_for_prompt()
    assert json.loads(path.read_text())[0]["content"] == "one\ntwo"


def test_history_outlives_the_chat_and_is_nobody_elses(chat: Chat, tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    with chat(says("Hi."), env=env) as terminal:
        terminal.wait_for_prompt()
        turn(terminal, "Hello there")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    file = tmp_path / "mlx-qwen3" / "chat_history"
    assert "Hello there" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with chat(env=env) as terminal:
        terminal.wait_for_prompt()
        terminal.type(UP)
        terminal.wait_for("Hello there")


def test_no_place_for_a_history_is_no_reason_to_fail(chat: Chat) -> None:
    with chat(says("Hi."), env={"XDG_STATE_HOME": __file__}) as terminal:
        terminal.wait_for_prompt()
        turn(terminal, "Hello")


def test_tab_completes_commands(chat: Chat) -> None:
    with chat() as terminal:
        terminal.wait_for_prompt()
        terminal.type("/tok\t")
        terminal.wait_for("ens")


def test_copying_through_the_terminal(chat: Chat) -> None:
    with chat(says("It is **85**."), env={"PATH": "/nowhere"}) as terminal:
        terminal.wait_for_prompt()
        terminal.type("/copy\r")
        terminal.wait_for("no answer to copy")
        terminal.wait_for_prompt()
        turn(terminal, "27 + 58?")
        terminal.type("/copy\r")
        terminal.wait_for("\x1b]52;c;")
        assert base64.b64decode(terminal.wait_for("\x07")).decode() == "It is **85**."
        terminal.wait_for("copied 13 characters")


def test_a_long_reply_scrolls_whole(chat: Chat) -> None:
    lines = [f"- item {number}" for number in range(60)]
    code = [f"x{number} = {number}" for number in range(60)]
    text = "\n".join([*lines, "", "```python", *code, "```"])
    with chat(says(text), rows=12, columns=40) as terminal:
        terminal.wait_for_prompt()
        turn(terminal, "Much")
        rows = [row.strip(" •") for row in terminal.lines]
    start = rows.index("item 0")
    assert rows[start : start + 60] == [line[2:] for line in lines]
    start = rows.index("x0 = 0")
    assert rows[start : start + 60] == code


def test_a_terminal_without_cursor_gets_plain_text(chat: Chat) -> None:
    with chat([["thinking", "Hm."], *says("**So**.")], env={"TERM": "dumb"}) as terminal:
        terminal.wait_for("> ")
        terminal.type("Think\n")
        terminal.wait_for("**So**.")
        assert "\x1b[?" not in terminal.screen


def test_a_table_that_is_slow_to_draw_is_whole_in_the_end(chat: Chat) -> None:
    """It is drawn less often than it changes."""
    rows = [f"| {number} | {'word ' * 12}|" for number in range(60)]
    text = "\n".join(["| a | b |", "|---|---|", *rows])
    with chat(says(text), rows=20) as terminal:
        terminal.wait_for_prompt()
        turn(terminal, "Table")
        assert sum("│" in row for row in terminal.lines) == 61


def test_nothing_is_left_of_an_interrupted_drawing(chat: Chat) -> None:
    with chat([["answer", "word " * 4000], ["end", "stop"]], says("Fine.")) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Talk\r")
        terminal.wait_for("word word")
        time.sleep(0.3)
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        picture = terminal.picture()
        assert not picture.cursor.hidden
        turn(terminal, "And?")
        assert seen(terminal).endswith("> And?\n\nFine.\n\n>")
