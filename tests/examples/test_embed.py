"""A model inside an app: the main thread never waits, and what was cancelled stays silent."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import Event, ModelNotFoundError
from mlx_qwen3.demo import has_demo

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

pytestmark = pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not here")

QT = """
import time
from PySide6.QtWidgets import QApplication
from embed_qt import ChatWindow

def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        app.processEvents()
        time.sleep(0.005)

app = QApplication([])
window = ChatWindow("demo")
window.show()
window.line.setText("What is 27 + 58?")
window.line.returnPressed.emit()
until(lambda: window.question is None)
window.line.setText("What is 4821 + 3990?")
window.line.returnPressed.emit()
until(lambda: "ones" in window.transcript.toPlainText().split("3990?")[-1])
window.button.click()
assert window.question is None
window.close()
print(window.transcript.toPlainText())
"""


@pytest.fixture(scope="module")
def embed() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("embed_python", EXAMPLES / "embed_python.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Ui:
    """A main thread that is this test's: everything posted is called while it waits."""

    def __init__(self, embed: Any, model: str) -> None:
        self.loop = embed.MainLoop()
        self.assistant = embed.Assistant(model, self.loop.post)
        self.events: list[Event] = []
        self.errors: list[Exception] = []
        self.threads: set[threading.Thread] = set()

    def ask(self, text: str = "What is 27 + 58?", **options: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.assistant.ask(messages, self._show, self.errors.append, **options)

    def wait(self, done: Callable[[], bool]) -> None:
        """Raises queue.Empty when nothing is posted for a minute."""
        while not done():
            self.loop._calls.get(timeout=60)()

    def let_something_be_posted(self) -> None:
        """Call nothing until there is something to call."""
        deadline = time.monotonic() + 60
        while self.loop._calls.empty():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def ended(self) -> bool:
        return bool(self.errors) or any(event.kind == "end" for event in self.events)

    def _show(self, event: Event) -> None:
        self.threads.add(threading.current_thread())
        self.events.append(event)


@pytest.fixture
def ui(embed: Any) -> Iterator[Ui]:
    ui = Ui(embed, "demo")
    yield ui
    ui.assistant.close()


def test_it_runs_as_it_stands() -> None:
    command = [sys.executable, str(EXAMPLES / "embed_python.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    begun = [f"{text} ..." for text in ("What is 27 + 58?", "What is 14 + 21?")]
    assert lines[:2] == begun
    assert lines[2:4] == ["What is 4821 + 3990? ...", "What is 4821 + 3990? stopped"]
    assert sorted(lines[4:]) == [
        "What is 14 + 21? 14 + 21 = 35.",
        "What is 27 + 58? 27 + 58 = 85.",
    ]
    assert done.stderr == ""


def test_events_come_on_the_main_thread(ui: Ui) -> None:
    ui.ask(temperature=0.0)
    ui.wait(ui.ended)
    assert ui.threads == {threading.current_thread()}
    answer = "".join(event.text for event in ui.events if event.kind == "answer")
    assert answer == "27 + 58 = 85."


def test_a_question_cancelled_while_the_model_loads_leaves_it_to_others(ui: Ui) -> None:
    ui.ask().cancel()
    ui.ask(temperature=0.0)
    ui.wait(ui.ended)
    assert ui.errors == []
    assert ui.events[-1].completion is not None
    assert ui.events[-1].completion.text == "27 + 58 = 85."
    assert sum(event.kind == "end" for event in ui.events) == 1


def test_what_was_cancelled_stays_silent(ui: Ui) -> None:
    """Also about what had been posted by then."""
    said: list[Event] = []
    messages = [{"role": "user", "content": "What is 4821 + 3990?"}]
    question = ui.assistant.ask(messages, said.append, ui.errors.append)
    ui.wait(lambda: len(said) > 0)
    ui.let_something_be_posted()
    question.cancel()
    seen = len(said)
    ui.ask(temperature=0.0)
    ui.wait(ui.ended)
    assert len(said) == seen
    assert ui.errors == []


def test_an_error_is_told(ui: Ui) -> None:
    ui.ask(temperature=-1.0)
    ui.wait(ui.ended)
    assert "temperature" in str(ui.errors[0])


def test_a_model_that_cannot_be_loaded_is_told_to_every_question(embed: Any) -> None:
    ui = Ui(embed, "no-such-model")
    ui.ask()
    ui.ask()
    ui.wait(lambda: len(ui.errors) == 2)
    assert [type(error) for error in ui.errors] == [ModelNotFoundError] * 2
    ui.assistant.close()


def test_closing_ends_the_thread_and_all_callbacks(ui: Ui) -> None:
    before = set(threading.enumerate())
    ui.ask("What is 4821 + 3990?", temperature=0.0)
    ui.wait(lambda: len(ui.events) > 0)
    ui.let_something_be_posted()
    ui.assistant.close()
    seen = len(ui.events)
    while not ui.loop._calls.empty():
        ui.loop._calls.get()()
    assert len(ui.events) == seen
    assert ui.errors == []
    assert ui.assistant._thread in before
    assert not ui.assistant._thread.is_alive()
    ui.assistant.close()  # once more does no harm


def test_qt() -> None:
    pytest.importorskip("PySide6")
    done = subprocess.run(
        [sys.executable, "-c", QT],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    first, second = done.stdout.split("What is 4821 + 3990?")
    assert first.rstrip().endswith("27 + 58 = 85.")
    assert second.rstrip().endswith("stopped")
