"""Where a chat's lines come from: a person at a terminal, or a pipe."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Protocol, TextIO

PROMPT = "> "


class Lines(Protocol):
    """One line after the other.

    interactive: a person types them, so that Ctrl-C means the reply and not the program.
    """

    interactive: bool

    def read(self) -> str:
        """The next line, without its end. Raises EOFError after the last."""


def lines_of(stdin: TextIO) -> Lines:
    """The lines of a terminal, edited where readline is available, or of a file or pipe."""
    if isinstance(stdin, io.TextIOWrapper):
        stdin.reconfigure(errors="replace")  # a stray byte is no reason to end a conversation
    return TypedLines() if stdin.isatty() else PipedLines(stdin)


class TypedLines:
    """Lines typed by a person behind a prompt."""

    interactive = True

    def __init__(self) -> None:
        if sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() edits lines once it is loaded

    def read(self) -> str:
        """Prompt and wait. Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""
        print(file=sys.stderr)  # sets the prompt apart from what stands above it
        try:
            return input(PROMPT) if sys.stdout.isatty() else self._read_beside_stdout()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)  # what follows gets a line of its own
            raise

    def _read_beside_stdout(self) -> str:
        """Prompt on stderr, where stdout goes to a file and is to hold only the answers."""
        print(PROMPT, end="", file=sys.stderr, flush=True)
        return input()


class PipedLines:
    """Lines of a file or pipe: no prompt, nothing echoed."""

    interactive = False

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self) -> str:
        """The next line; waits for the pipe's other end."""
        line = self._source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
