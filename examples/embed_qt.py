"""embed_python.py in a Qt window, where PySide6-Essentials is installed.

python examples/embed_qt.py [MODEL]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from embed_python import Assistant, Question
from PySide6.QtCore import QObject, Qt, Signal, Slot
from PySide6.QtGui import QCloseEvent, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QTextEdit,
    QVBoxLayout,
    QWidget,
)

from mlx_qwen3 import Event


class Poster(QObject):
    """`post` for Qt: a signal crosses threads, and is queued where the object was made."""

    _posted = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        # A method of an object that lives on the main thread; a lambda would be called on ours.
        self._posted.connect(self._call, Qt.ConnectionType.QueuedConnection)

    def post(self, call: Callable[[], None]) -> None:
        self._posted.emit(call)

    @Slot(object)
    def _call(self, call: Callable[[], None]) -> None:
        call()


class ChatWindow(QWidget):
    """A transcript, a line to write in, and a button that stops."""

    def __init__(self, model: str) -> None:
        super().__init__(windowTitle="Qwen3")
        self._poster = Poster()
        self._assistant = Assistant(model, self._poster.post)
        self._messages: list[dict[str, str]] = []
        self._kind = ""  # of what was written last
        self.question: Question | None = None
        self.transcript = QTextEdit(readOnly=True)
        self.line = QLineEdit(placeholderText="Ask")
        self.button = QPushButton("Stop")
        self.button.setEnabled(False)
        self.line.returnPressed.connect(self.ask)
        self.button.clicked.connect(self.stop)
        below = QHBoxLayout()
        below.addWidget(self.line)
        below.addWidget(self.button)
        layout = QVBoxLayout(self)
        layout.addWidget(self.transcript)
        layout.addLayout(below)

    @Slot()
    def ask(self) -> None:
        text = self.line.text().strip()
        if not text or self.question is not None:
            return
        self.line.clear()
        self.button.setEnabled(True)
        self._write(text, bold=True)
        self._kind = ""
        self._messages.append({"role": "user", "content": text})
        self.question = self._assistant.ask(list(self._messages), self._show, self._fail)

    @Slot()
    def stop(self) -> None:
        if self.question is not None:
            self.question.cancel()
            self._forget("stopped")

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        self._assistant.close()
        super().closeEvent(event)

    def _show(self, event: Event) -> None:
        if event.kind in ("thinking", "answer"):
            self._write("\n" if event.kind != self._kind else "")
            self._kind = event.kind
            self._write(event.text, gray=event.kind == "thinking")
        elif event.completion is not None:
            self._messages.append({"role": "assistant", "content": event.completion.text})
            self._end()

    def _fail(self, error: Exception) -> None:
        self._forget(str(error))

    def _forget(self, note: str) -> None:
        """A question without an answer is no part of the conversation."""
        self._messages.pop()
        self._end(note)

    def _end(self, note: str = "") -> None:
        self.question = None
        self.button.setEnabled(False)
        self._write(f"\n{note}\n\n" if note else "\n\n", gray=True)

    def _write(self, text: str, *, bold: bool = False, gray: bool = False) -> None:
        self.transcript.moveCursor(QTextCursor.MoveOperation.End)
        self.transcript.setFontWeight(700 if bold else 400)
        role = self.palette().placeholderText() if gray else self.palette().text()
        self.transcript.setTextColor(role.color())
        self.transcript.insertPlainText(text)


def main(model: str = "demo") -> None:
    """Show the window until it is closed."""
    app = QApplication(sys.argv)
    window = ChatWindow(model)
    window.resize(560, 480)
    window.show()
    app.exec()


if __name__ == "__main__":
    main(*sys.argv[1:])
