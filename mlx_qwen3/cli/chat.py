"""`mlx-qwen3 chat`: a conversation, line by line."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import typer

from mlx_qwen3.cli import options
from mlx_qwen3.errors import ContextOverflowError, Qwen3Error

if TYPE_CHECKING:
    from mlx_qwen3.cli.lines import Lines
    from mlx_qwen3.cli.session import Session


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
    speculation: options.Speculation = None,
    draft: options.Draft = None,
    dtype: options.Dtype = None,
) -> None:
    """Talk with a model. A line is a message; /help lists the other things it can be."""
    from mlx_qwen3.cli.lines import lines_of
    from mlx_qwen3.cli.session import Session
    from mlx_qwen3.cli.terminal import note

    llm = options.open_model(model, dtype, draft)
    session = Session(llm, sys.stdout, system, options.reply_options(context.params))
    session.check()
    lines = lines_of(sys.stdin)
    if lines.interactive:
        note("/help lists the commands, Ctrl-D leaves")
    converse(session, lines)


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
        print(f"error: {_explain(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        if not interactive:
            raise
        note("(stopped)")


def _explain(error: Qwen3Error) -> str:
    """One line; a conversation that has grown too long has remedies of its own."""
    line = " ".join(str(error).split())
    if not isinstance(error, ContextOverflowError):
        return line
    found = line.partition(";")[0]  # the rest is advice for a single prompt
    return (
        f"{found}: this message was not sent. /reset forgets the conversation; "
        "chat --max-kv-size N forgets only its oldest tokens"
    )
