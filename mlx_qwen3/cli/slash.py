"""The commands of a chat: lines that begin with a slash and are not for the model."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from mlx_qwen3.cli.clipboard import copy
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
    """Do what a command says, or say why not. Raises EOFError for /exit, and Qwen3Error."""
    command = COMMANDS.get(name)
    if command is None:
        note(f"unknown command {name}: /help lists them; with a space in front it is a message")
    elif text and not command.argument:
        note(f"{name} takes nothing behind it; with a space in front the line is a message")
    else:
        command.run(session, text)


def _switch_thinking(session: Session, wanted: bool) -> bool:
    if session.switch_thinking(wanted):
        return True
    note(f"this model {session.chat.llm.mode} thinks: that cannot be switched")
    return False


def _think(session: Session, wanted: bool) -> None:
    if _switch_thinking(session, wanted):
        note(f"thinking is {'on' if wanted else 'off'}")


def _thinking(session: Session, text: str) -> None:
    options = session.chat.options
    if text in ("on", "off"):
        options.pop("thinking_budget", None)
        _think(session, text == "on")
    elif text in ("show", "fold"):
        session.folded = text == "fold"
        note("thoughts are " + ("folded to a line" if session.folded else "left on the screen"))
    elif text.isdecimal() and int(text) > 0:
        if _switch_thinking(session, True):
            options["thinking_budget"] = int(text)
            note(f"thinking is on, for at most {int(text):,} tokens")
    elif text:
        note(f"/thinking {text}: expected on, off, a number of tokens, show or fold")
    else:
        note(_thinking_now(session) + "\n" + (session.last_thought() or "nothing was thought yet"))


def _thinking_now(session: Session) -> str:
    wanted, budget = (session.chat.options.get(k) for k in ("thinking", "thinking_budget"))
    state = {True: "on", False: "off", None: "as the model is made"}[wanted]
    return f"thinking is {state}" + (f", for at most {budget:,} tokens" if budget else "")


def _reset(session: Session, _: str) -> None:
    session.chat.reset()
    note("the conversation so far is forgotten")


def _system(session: Session, text: str) -> None:
    if text:
        session.chat.system = text
        note("the system message is set")
    else:
        system = session.chat.system
        note("no system message" if system is None else f"system: {system}")


def _save(session: Session, path: str) -> None:
    if not path:
        return note("/save needs a file's name")
    session.chat.save(path)
    note(f"saved {_count(len(session.chat.messages), 'message')} to {path}")


def _load(session: Session, path: str) -> None:
    if not path:
        return note("/load needs a file's name")
    session.chat.load(path)
    note(f"loaded {_count(len(session.chat.messages), 'message')} from {path}")


def _tokens(session: Session, _: str) -> None:
    used, room = session.chat.token_count(), session.chat.llm.context_length
    usages = [completion.usage for completion in session.spent]
    read, written, thought = (
        sum(getattr(usage, f"{kind}_tokens") for usage in usages)
        for kind in ("prompt", "completion", "thinking")
    )
    note(
        f"the conversation is {used:,} tokens long, {used / room:.0%} of the context of {room:,}\n"
        f"so far {read:,} read and {written:,} written ({thought:,} of them thinking) "
        f"in {_count(len(usages), 'reply', 'replies')}"
    )


def _copy(session: Session, _: str) -> None:
    answer = session.last_answer()
    if not answer:
        note("there is no answer to copy yet")
    elif way := copy(answer, sys.stdout):
        note(f"copied {_count(len(answer), 'character')} through {way}")
    else:
        note("no clipboard: pbcopy, wl-copy, xclip and xsel are missing, and this is no terminal")


def _mcp(session: Session, _: str) -> None:
    if session.chat.servers is None:
        return note("no MCP servers: chat --mcp servers.json names some")
    from mlx_qwen3.cli.mcp_list import describe_servers

    note(describe_servers(session.chat.servers.connections, session.chat.tools))


def _help(session: Session, _: str) -> None:
    usages = {
        f"{name} {command.argument}".rstrip(): command.help for name, command in COMMANDS.items()
    }
    width = max(map(len, usages))
    note("\n".join(f"{usage:<{width}}  {text}" for usage, text in usages.items()))


def _exit(session: Session, _: str) -> NoReturn:
    raise EOFError  # as if the input had ended


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


COMMANDS = {
    "/thinking": Command(
        _thinking, "whether and how long it thinks; show; fold; alone: read it", "on|off|N"
    ),
    "/think": Command(lambda session, _: _think(session, True), "think before answering"),
    "/no_think": Command(lambda session, _: _think(session, False), "answer at once"),
    "/system": Command(_system, "set the system message; alone: show it", "TEXT"),
    "/mcp": Command(_mcp, "list the MCP servers and what they offer"),
    "/tokens": Command(_tokens, "how long the conversation is; tokens read and written"),
    "/copy": Command(_copy, "put the last answer on the clipboard"),
    "/save": Command(_save, "write the conversation to a JSON file", "FILE"),
    "/load": Command(_load, "go on from a saved conversation", "FILE"),
    "/reset": Command(_reset, "forget the conversation so far"),
    "/help": Command(_help, "show this list"),
    "/exit": Command(_exit, "leave, as Ctrl-D does"),
}
