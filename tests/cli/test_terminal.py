"""What a reply looks like, on a terminal and off it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from mlx_qwen3.cli.terminal import CYAN, DIM, RESET, ReplyPrinter, figures, note_figures, reply_view
from mlx_qwen3.generation.output import Event
from tests.fakes import calls, ends, says, thinks


def shown(*events: Event, styled: bool) -> str:
    out = io.StringIO()
    printer = ReplyPrinter(out, styled=styled)
    for event in events:
        printer.show(event)
    printer.finish()
    return out.getvalue()


def test_thinking_is_dimmed_and_set_apart() -> None:
    text = shown(thinks("Let me "), thinks("see."), says("8"), says("5"), ends(), styled=True)
    assert text == f"{DIM}Let me see.{RESET}\n\n85\n"


def test_off_a_terminal_there_is_only_the_answer() -> None:
    assert shown(thinks("Let me see."), says("85\n"), ends(), styled=False) == "85\n"
    assert shown(thinks("Let me see."), ends("length"), styled=False) == ""


def test_calls_have_a_line_each() -> None:
    events = (says("Well:"), calls("time", zone="東京"), calls("weather"), says("?"))
    first = '{"name": "time", "arguments": {"zone": "東京"}}'
    second = '{"name": "weather", "arguments": {}}'
    assert shown(*events, styled=False) == f"Well:\n{first}\n{second}\n?\n"
    assert shown(*events, styled=True) == (
        f"Well:\n\n{CYAN}{first}{RESET}\n{CYAN}{second}{RESET}\n\n?\n"
    )


def test_a_call_that_made_no_sense_is_shown_as_written() -> None:
    text = shown(calls("time", error="is not valid JSON"), styled=False)
    assert text == "<tool_call>time</tool_call> (is not valid JSON)\n"


# ESC, BEL, backspace, carriage return, DEL, C1's CSI: retitle, overwrite, hide, colour.
@pytest.mark.parametrize("text", ["\x1b[31m", "\x1b]0;title\x07", "\b", "\x7f", "\x9b31m", "\x00"])
@pytest.mark.parametrize("event", [says, thinks, lambda text: calls("time", zone=text)])
def test_a_model_cannot_control_the_terminal(event, text: str) -> None:  # type: ignore[no-untyped-def]
    seen = shown(event(f"a{text}b"), styled=True)
    for own in (DIM, CYAN, RESET):
        seen = seen.replace(own, "")
    assert all(char == "\n" or char.isprintable() for char in seen)
    assert "a" in seen
    assert "b" in seen


def test_line_ends_and_tabs_stay() -> None:
    assert shown(says("a\tb\r\nc"), styled=True) == "a\tb\nc\n"


def test_a_file_gets_what_the_model_wrote() -> None:
    assert shown(says("a\x1b[31mb"), styled=False) == "a\x1b[31mb\n"


class Screen(io.StringIO):
    """A terminal at which Ctrl-C is pressed during one write: it is done, and raises."""

    def __init__(self, interrupted: int) -> None:
        super().__init__()
        self._left = interrupted

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        length = super().write(text)
        self._left -= 1
        if self._left == 0:
            super().write("^C")
            raise KeyboardInterrupt
        return length


def show(screen: Screen, *events: Event | BaseException) -> None:
    with reply_view(screen) as (printer, _):
        for event in events:
            if isinstance(event, BaseException):
                raise event
            printer.show(event)


@pytest.mark.parametrize("interrupted", range(1, 7))
def test_an_interruption_inside_of_a_write(interrupted: int) -> None:
    screen = Screen(interrupted)
    with pytest.raises(KeyboardInterrupt):
        show(screen, thinks("Let me see."), says("85"))
    styling, _, rest = screen.getvalue().rpartition("^C")
    assert rest.endswith("\n")
    assert styling.count(DIM) <= screen.getvalue().count(RESET)


def test_an_interruption_at_the_start_of_a_line() -> None:
    screen = Screen(0)
    with pytest.raises(KeyboardInterrupt):
        show(screen, says("85\n"), KeyboardInterrupt())
    assert screen.getvalue() == "85\n\n"  # the echo of ^C stands between


def test_figures() -> None:
    end = ends("length", thinking_tokens=20).completion
    assert end is not None
    assert figures(end) == (
        "12 tokens read in 0.25 s · 34 written (20 of them thinking) at 17.0 tokens/s · "
        "peak memory 1.50 GB · cut off: no tokens left"
    )


def test_figures_say_what_was_read_before() -> None:
    done = ends().completion
    assert done is not None
    done = replace(done, usage=replace(done.usage, cached_tokens=9))
    assert figures(done).startswith("12 tokens read (9 of them before) in 0.25 s")


def test_figures_are_for_a_person(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = ends().completion
    assert end is not None
    note_figures(end)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    note_figures(end)
    assert capsys.readouterr().err == f"{DIM}{figures(end)}{RESET}\n"
