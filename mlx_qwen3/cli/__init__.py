"""The command line: `mlx-qwen3 COMMAND`, one file per command.

Importing this package, or asking for --help, loads only the standard library and typer; what a
command needs it imports when it runs. Errors are handled here and nowhere else: one line on
stderr, exit code 1 failed, 2 wrong usage, 130 interrupted; a traceback only with --debug.
"""

import gc
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from mlx_qwen3.errors import Qwen3Error

PROGRAM = "mlx-qwen3"
INTERRUPTED = 130
GRACE = 2.0  # seconds that threads get to clean up after Ctrl-C


def main(argv: Sequence[str] | None = None) -> None:
    """The console script. argv: None is what the process was started with."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model's emoji must not end an ASCII stream
            stream.reconfigure(errors="replace")
    code = run(sys.argv[1:] if argv is None else argv)
    if code == INTERRUPTED:
        _leave()
    gc.freeze()  # what is left goes with the process; looking for cycles in it takes longer
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but SystemExit gets past it."""
    args, debug = split_debug(argv)
    try:
        code = typer.main.get_command(build_app()).main(args, PROGRAM, standalone_mode=False)
        sys.stdout.flush()  # a reader that went away must show up here, not at exit
    except BrokenPipeError:
        return _abandon_stdout()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where everything ends
        return _report(error, debug)
    return code if isinstance(code, int) else 0


def build_app() -> typer.Typer:
    """The Typer application with every command that exists."""
    app = typer.Typer(
        help="Run Qwen3 models: streamed, with thinking under control.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_start)
    for command in _commands():
        app.command()(command)
    return app


def _commands() -> list[Callable[..., None]]:
    # Imported here, not above: a name bound in this module would hide its own submodule.
    from mlx_qwen3.cli.bench import bench
    from mlx_qwen3.cli.chat import chat
    from mlx_qwen3.cli.convert import convert
    from mlx_qwen3.cli.doctor import doctor
    from mlx_qwen3.cli.eval import eval
    from mlx_qwen3.cli.generate import generate
    from mlx_qwen3.cli.models import models
    from mlx_qwen3.cli.pull import pull
    from mlx_qwen3.cli.serve import serve

    return [generate, chat, serve, convert, eval, bench, models, pull, doctor]


def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Options that belong to no command. --debug is taken out of the line before it gets here."""
    if version:
        from mlx_qwen3._version import __version__

        print(f"{PROGRAM} {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def split_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug out of a command line, wherever it stands before a "--"."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return options + list(argv[end:]), len(options) < end


def _report(error: Exception, debug: bool) -> int:
    """Say on stderr what went wrong, in one line, and return the exit code."""
    if debug:
        traceback.print_exception(error)
    message, code = describe(error)
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return code


def describe(error: Exception) -> tuple[str, int]:
    """The line a person reads, and the exit code: 2 for wrong usage, 1 for the rest."""
    if isinstance(error, Qwen3Error):
        return _one_line(str(error)), 1
    if isinstance(error, typer.Abort):
        return "stopped: the input ended", 1
    if hasattr(error, "format_message"):  # typer's own: it carries click inside, or did not always
        context = getattr(error, "ctx", None)
        command = context.command_path if context else PROGRAM
        return f"{_one_line(error.format_message()).rstrip('.')} (see {command} --help)", 2
    summary = _one_line(str(error)) or "no message"
    return f"{type(error).__name__}: {summary}; run with --debug for the traceback", 1


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _leave() -> None:
    """End the process after Ctrl-C even where a thread hangs, on a dead connection for one."""
    deadline = time.monotonic() + GRACE
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(deadline - time.monotonic(), 0))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _abandon_stdout() -> int:
    """Whoever read our output left (`| head`): not an error worth a word.

    Python flushes stdout once more at exit; it must then have somewhere to go.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
