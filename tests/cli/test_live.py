"""Lines redrawn in place, on an emulated terminal: what is seen is what was meant."""

from __future__ import annotations

import io
import os
import random

import pyte
import pytest

from mlx_qwen3.cli.live import LiveLines


class Emulated(io.StringIO):
    """A terminal that can be looked at, with everything that has scrolled off it."""

    def __init__(self, columns: int = 20, rows: int = 6) -> None:
        super().__init__()
        self.size = os.terminal_size((columns, rows))
        self.picture = pyte.HistoryScreen(columns, rows, history=10_000, ratio=1)
        self._stream = pyte.Stream(self.picture)

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))
        return super().write(text)

    def seen(self) -> list[str]:
        screen = self.picture
        rows = [*screen.history.top, *(screen.buffer[y] for y in range(screen.lines))]
        lines = ["".join(row[x].data for x in range(screen.columns)).rstrip() for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def opened(columns: int = 20, rows: int = 6) -> tuple[Emulated, LiveLines]:
    terminal = Emulated(columns, rows)
    return terminal, LiveLines(terminal, lambda: terminal.size)


def test_live_lines_are_replaced_and_final_ones_stay() -> None:
    terminal, live = opened()
    live.draw([], ["one"])
    live.draw([], ["one", "two"])
    live.draw(["done"], ["three"])
    assert terminal.seen() == ["done", "three"]
    live.draw(["end"])
    live.close()
    assert terminal.seen() == ["done", "end"]
    assert (terminal.picture.cursor.x, terminal.picture.cursor.y) == (0, 2)
    assert not terminal.picture.cursor.hidden


def test_random_drawings_show_what_was_meant() -> None:
    numbers = random.Random(3)
    for _ in range(60):
        terminal, live = opened(rows=numbers.choice([3, 6, 12]))
        terminal.write("above\n")
        meant = ["above"]
        for step in range(60):
            final = [f"final {step}.{n}" for n in range(numbers.choice([0, 0, 0, 1, 2, 9]))]
            lines = [f"{numbers.choice('ab')} {n}" for n in range(numbers.choice([0, 1, 2, 8]))]
            live.draw(final, lines)
            meant += final
            shown = [*meant, *lines[-max(terminal.size.lines - 2, 1) :]]
            assert terminal.seen() == shown
        live.close()
        assert terminal.seen() == shown


def test_nothing_is_written_where_nothing_changes() -> None:
    terminal, live = opened()
    live.draw([], ["one", "two"])
    before = terminal.getvalue()
    live.draw([], ["one", "two"])
    assert terminal.getvalue() == before
    live.draw([], ["one", "twos"])
    assert "one" not in terminal.getvalue()[len(before) :]


def test_a_line_wider_than_it_was_taken_for_does_not_shift_the_others() -> None:
    terminal, live = opened(columns=10)
    live.draw([], ["x" * 30, "b"])
    live.draw([], ["y", "c"])
    live.close()
    assert terminal.seen() == ["y", "c"]


@pytest.mark.parametrize("columns", [10, 15])
def test_a_window_made_narrower_is_drawn_over(columns: int) -> None:
    """The emulator does not reflow, most terminals do: this is the picture after a reflow."""
    terminal, live = opened(columns=20)
    live.draw([], ["abcdefghijklmnopqr", "short"])
    narrow = Emulated(columns, 6)
    narrow.write("abcdefghijklmnopqr\nshort")
    narrow.truncate(0)
    live._out = narrow
    terminal.size = os.terminal_size((columns, 6))
    live.draw([], ["one", "two"])
    live.close()
    assert narrow.seen() == ["one", "two"]


def test_the_cursor_comes_back_whatever_happens() -> None:
    terminal, live = opened()
    live.draw([], ["one"])
    assert terminal.picture.cursor.hidden
    live.close()
    live.close()
    assert not terminal.picture.cursor.hidden
    assert terminal.picture.cursor.x == 0
