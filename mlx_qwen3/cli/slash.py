"""The commands of a chat: lines that begin with a slash and are not for the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from mlx_qwen3.cli.terminal import note

if TYPE_CHECKING:
    from mlx_qwen3.cli.session import Session

_COMMAND = re.compile(r"(/\w+)(?:\s+(.*))?", re.DOTALL)  # a path has a second slash
_SOFT_SWITCHES = ("/think", "/no_think")


@dataclass(frozen=True)
class Command:
    """What a command does with the text behind its name, and its line of help.

    argument: what that text is, "" when there must be none.
    """

    run: Callable[[Session, str], None]
    help: str
    argument: str = ""


def find_command(line: str) -> tuple[str, str] | None:
    """(name, the text behind it) of a line that is a command, None for a message.

    A space in front makes any line a message. A soft switch with words behind it is one too:
    Qwen3 reads it there itself.
    """
    found = _COMMAND.fullmatch(line.rstrip())
    if found is None or (found[1] in _SOFT_SWITCHES and found[2]):
        return None
    return found[1], found[2] or ""


def run_command(session: Session, name: str, text: str) -> None:
    """Do what a command says, or say why not. Raises EOFError for /exit."""
    command = COMMANDS.get(name)
    if command is None:
        note(f"unknown command {name}: /help lists them; with a space in front it is a message")
    elif text and not command.argument:
        note(f"{name} takes nothing behind it; with a space in front the line is a message")
    else:
        command.run(session, text)


def _switch_thinking(session: Session, wanted: bool) -> None:
    if session.switch_thinking(wanted):
        note(f"thinking is {'on' if wanted else 'off'}")
    else:
        note(f"this model {session.llm.mode} thinks: that cannot be switched")


def _reset(session: Session, _: str) -> None:
    session.messages.clear()
    note("the conversation so far is forgotten")


def _system(session: Session, text: str) -> None:
    if text:
        session.system = text
        note("the system message is set")
    else:
        note("no system message" if session.system is None else f"system: {session.system}")


def _help(session: Session, _: str) -> None:
    usages = {f"{name} {command.argument}": command.help for name, command in COMMANDS.items()}
    width = max(map(len, usages))
    note("\n".join(f"{usage:<{width}}  {text}" for usage, text in usages.items()))


def _exit(session: Session, _: str) -> NoReturn:
    raise EOFError  # as if the input had ended


COMMANDS = {
    "/think": Command(lambda session, _: _switch_thinking(session, True), "think before answering"),
    "/no_think": Command(lambda session, _: _switch_thinking(session, False), "answer at once"),
    "/system": Command(_system, "set the system message; alone: show it", "TEXT"),
    "/reset": Command(_reset, "forget the conversation so far"),
    "/help": Command(_help, "show this list"),
    "/exit": Command(_exit, "leave, as Ctrl-D does; Ctrl-C stops a reply"),
}
