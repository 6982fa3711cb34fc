"""`mlx-qwen3 chat`: a conversation, line by line."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import typer

from mlx_qwen3.cli import options
from mlx_qwen3.errors import ContextOverflowError, Qwen3Error

if TYPE_CHECKING:
    from mlx_qwen3.agent.approval import Decision
    from mlx_qwen3.agent.mcp import McpServers
    from mlx_qwen3.cli.lines import Lines
    from mlx_qwen3.cli.session import Session
    from mlx_qwen3.llm import LLM
    from mlx_qwen3.text.tool_calls import ToolCall


# Options that only describe the replies are read from the context, all at once.
def chat(
    context: typer.Context,
    model: options.Model = None,
    system: options.System = None,
    thinking: options.Thinking = None,
    thinking_budget: options.ThinkingBudget = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_kv_size: options.MaxKvSize = None,
    kv_bits: options.KvBits = None,
    no_prefix_cache: options.NoPrefixCache = False,
    prefix_cache_size: options.PrefixCacheSize = None,
    speculation: options.Speculation = None,
    draft: options.Draft = None,
    experts: options.Experts = None,
    memory_budget: options.MemoryBudget = None,
    mcp: options.Mcp = None,
    yes: options.Yes = False,
    max_steps: options.MaxSteps = None,
    dtype: options.Dtype = None,
) -> None:
    """Talk with a model. A line is a message; /help lists the other things it can be."""
    from mlx_qwen3.cli.lines import lines_of
    from mlx_qwen3.cli.signals import leave_on_signals
    from mlx_qwen3.cli.slash import COMMANDS
    from mlx_qwen3.cli.terminal import note

    kept = options.prefix_cache(no_prefix_cache, prefix_cache_size)
    with leave_on_signals(), _servers(mcp) as servers:  # they start while the model loads
        llm = options.open_model(
            model, dtype, kept, draft, experts=experts, memory_budget=memory_budget
        )
        lines = lines_of(sys.stdin, list(COMMANDS))
        session = _open(llm, servers, context, lines)
        session.check()
        if servers is not None:
            _greet(servers)
        if lines.interactive:
            note("/help lists the commands, Alt-Enter begins a new line, Ctrl-D leaves")
        converse(session, lines)


@contextlib.contextmanager
def _servers(file: str | None) -> Iterator[McpServers | None]:
    if file is None:
        yield None
        return
    from mlx_qwen3.agent.mcp import McpServers

    # What goes wrong with a server is shown in its place, and not also by logging on stderr.
    logging.getLogger("mlx_qwen3").addHandler(logging.NullHandler())
    with McpServers(file) as servers:
        yield servers


def _open(llm: LLM, servers: McpServers | None, context: typer.Context, lines: Lines) -> Session:
    from mlx_qwen3.agent.approval import Approvals
    from mlx_qwen3.agent.conversation import MAX_STEPS, Conversation
    from mlx_qwen3.cli.session import Session

    values = context.params
    chat = Conversation(
        llm,
        system=values["system"],
        mcp=servers,
        max_steps=MAX_STEPS if values["max_steps"] is None else values["max_steps"],
        **options.reply_options(values),
    )
    approvals = Approvals(partial(_decide, lines))
    return Session(chat, sys.stdout, None if values["yes"] else approvals)


def _greet(servers: McpServers) -> None:
    """Wait for the servers; say which failed and, to a person, what the others bring."""
    from mlx_qwen3.cli.mcp_list import trouble
    from mlx_qwen3.cli.terminal import note

    for line in trouble(servers.connections):
        note(line)
    if sys.stderr.isatty():
        up = [one for one in servers.connections if one.state == "ready"]
        names = ", ".join(f"{one.spec.name} ({len(one.listing.tools)} tools)" for one in up)
        note(f"MCP servers: {names or 'none'}; /mcp lists them")


_CHOICES = "[o]nce, [a]lways, [n]o, ne[v]er: "
_LEAST = 12  # characters of arguments; fewer tell nothing
_DECISIONS: dict[str, Decision] = {"o": "once", "a": "always", "n": "no", "v": "never"}


def _decide(lines: Lines, call: ToolCall) -> Decision:
    """Ask a person about a call. Where nobody is, nothing runs."""
    from mlx_qwen3.cli.terminal import note, visible

    name = visible(call.name)
    question = f"Run {_in_a_line(call)}? {_CHOICES}"
    try:
        while True:
            answer = lines.ask(question).strip().lower()
            for key, decision in _DECISIONS.items():
                if answer in (key, decision):
                    return decision
    except EOFError:
        note(f"{name} was not run: nobody is there to allow it (--yes allows all)")
        return "no"


def _in_a_line(call: ToolCall) -> str:
    """A call as far as there is room beside the choices; all of it stands above the question."""
    from mlx_qwen3.cli.terminal import visible

    name = visible(call.name)
    given = visible(json.dumps(call.arguments, ensure_ascii=False))
    room = shutil.get_terminal_size().columns - len(f"Run {name} ? {_CHOICES}") - len("a\n")
    if len(given) > room:
        given = f"{given[: room - 1]}…" if room >= _LEAST else ""
    return f"{name} {given}".rstrip()


def converse(session: Session, lines: Lines) -> None:
    """Take line after line until there are no more, or /exit."""
    with contextlib.suppress(EOFError):
        while True:
            _take(session, _next_line(lines), interactive=lines.interactive)


def _next_line(lines: Lines) -> str:
    """The next line; an empty one when a person pressed Ctrl-C instead. Raises EOFError."""
    from mlx_qwen3.cli.terminal import note

    try:
        return lines.read()
    except KeyboardInterrupt:
        if not lines.interactive:
            raise
        note("(Ctrl-D or /exit leaves)")
        return ""


def _take(session: Session, line: str, *, interactive: bool) -> None:
    """Do what a line asks for. An error, or Ctrl-C by a person, ends the turn only."""
    from mlx_qwen3.cli.slash import find_command, run_command
    from mlx_qwen3.cli.terminal import note

    try:
        if command := find_command(line):
            run_command(session, *command)
        elif message := line.strip():
            session.ask(message)
    except Qwen3Error as error:
        print(f"error: {_explain(error, session)}", file=sys.stderr)
    except KeyboardInterrupt:
        if not interactive:
            raise
        note("(stopped)")


def _explain(error: Qwen3Error, session: Session) -> str:
    """One line; a conversation that has grown too long has remedies of its own."""
    line = " ".join(str(error).split())
    if not isinstance(error, ContextOverflowError):
        return line
    found = line.partition(";")[0]  # the rest is advice for a single prompt
    return (
        f"{found}: this message was not sent. /reset forgets the conversation; "
        "chat --max-kv-size N forgets only its oldest tokens"
        + "; the tools' descriptions count too, and servers may be disabled"
        * bool(session.chat.tools)
    )
