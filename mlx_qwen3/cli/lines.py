"""Where a chat's lines come from: a person at a terminal, or a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

PROMPT = "> "
HISTORY = "chat_history"


class Lines(Protocol):
    """One message after the other.

    interactive: a person types them, so that Ctrl-C means the reply and not the program.
    """

    interactive: bool

    def read(self) -> str:
        """The next message. Raises EOFError after the last."""

    def ask(self, question: str) -> str:
        """The answer to a question beside the conversation. Raises EOFError where nobody is."""


def lines_of(stdin: TextIO, commands: Sequence[str] = ()) -> Lines:
    """The lines of a terminal, edited, or of a file or pipe. commands: what Tab completes."""
    if isinstance(stdin, io.TextIOWrapper):
        stdin.reconfigure(errors="replace")  # a stray byte is no reason to end a conversation
    if not stdin.isatty():
        return PipedLines(stdin)
    return TypedLines(commands) if is_screen(sys.stdout) else PlainlyTypedLines()


def is_screen(out: TextIO) -> bool:
    """Whether lines can be redrawn there: a terminal, and one that knows how."""
    return out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


class TypedLines:
    """Messages typed by a person behind a prompt, edited by prompt_toolkit.

    Enter sends; Alt-Enter, or a backslash before Enter, begins another line; what is pasted
    keeps its lines. The history of messages outlives the program.
    """

    interactive = True

    def __init__(self, commands: Sequence[str] = ()) -> None:
        self._commands = commands
        self._session: PromptSession[str] | None = None

    def read(self) -> str:
        """Prompt and wait. Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""
        print()  # sets the prompt apart from what stands above it
        if self._session is None:
            self._session = self._open()
        return self._session.prompt([("bold", PROMPT)], prompt_continuation=" " * len(PROMPT))

    def ask(self, question: str) -> str:
        """One line, which the history does not keep."""
        from prompt_toolkit import PromptSession

        session: PromptSession[str] = PromptSession(output=_output())
        return session.prompt(question)

    def _open(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.shortcuts import CompleteStyle

        return PromptSession(
            multiline=True,
            key_bindings=_keys(),
            history=_history(),
            completer=WordCompleter(list(self._commands), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_open_in_editor=True,
            output=_output(),
        )


def _output() -> Output:
    """The terminal, which is not asked where its cursor is: some never answer."""
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
    output.enable_cpr = False
    return output


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def _history() -> History:
    """Of earlier chats too, where a file for it can be had."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "mlx-qwen3" / HISTORY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        with path.open("ab"):  # a file of someone else's is found out now
            return FileHistory(str(path))
    except OSError:
        return InMemoryHistory()


class PlainlyTypedLines:
    """Lines typed where stdout is a file or a terminal without cursor: the prompt is on stderr."""

    interactive = True

    def read(self) -> str:
        """Prompt and wait. Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""
        print(file=sys.stderr)
        return self.ask(PROMPT)

    def ask(self, question: str) -> str:
        """One line."""
        print(question, end="", file=sys.stderr, flush=True)
        try:
            return input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)  # what follows gets a line of its own
            raise


class PipedLines:
    """Lines of a file or pipe: no prompt, nothing echoed, nobody to ask."""

    interactive = False

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self) -> str:
        """The next line; waits for the pipe's other end."""
        line = self._source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def ask(self, question: str) -> str:
        """Nobody answers. Raises EOFError."""
        raise EOFError


@contextlib.contextmanager
def quiet_keys(stdin: TextIO) -> Iterator[None]:
    """What is typed meanwhile is not shown between the lines of a reply, and not lost."""
    import termios

    try:
        before = termios.tcgetattr(stdin.fileno())
    except (termios.error, OSError, ValueError):  # no terminal
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(stdin.fileno(), termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(stdin.fileno(), termios.TCSANOW, before)
