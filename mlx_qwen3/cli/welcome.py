"""What a person sees when the server is ready: where it is, what it serves, how it stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlx_qwen3.cli.terminal import visible

if TYPE_CHECKING:
    from mlx_qwen3.server.listener import Listener
    from mlx_qwen3.server.settings import ServerSettings
    from mlx_qwen3.service import ModelInfo

_BOLD, _CYAN, _DIM, _RESET = "\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"


def welcome(listener: Listener, models: Sequence[ModelInfo], settings: ServerSettings) -> None:
    """Say it on stderr: in colours to a person, in one plain line to a log."""
    if not sys.stderr.isatty():
        names = ", ".join(model.name for model in models)
        print(f"serving {names} at {_place(listener)}", file=sys.stderr, flush=True)
        return
    lines = [
        f"  {_DIM}{label:<10}{_RESET}{value}" for label, value in _rows(listener, models, settings)
    ]
    seconds = f"{settings.shutdown_seconds:g} s"
    stop = f"  {_DIM}Ctrl-C stops it; running replies get {seconds} to finish{_RESET}"
    print("\n".join(("", *lines, "", stop, "")), file=sys.stderr, flush=True)


def _rows(
    listener: Listener, models: Sequence[ModelInfo], settings: ServerSettings
) -> Iterator[tuple[str, str]]:
    url = listener.url
    if listener.path is None:
        yield "Chat", f"{_BOLD}{_CYAN}{url}/{_RESET}"
    else:
        yield "Socket", f"{_BOLD}{_place(listener)}{_RESET}"
    yield "OpenAI", f"{url}/v1"
    yield "Anthropic", url
    for label, model in zip(["Models", *[""] * len(models)], models, strict=False):
        state = "" if model.state == "loaded" else f"  {_DIM}(loaded when asked for){_RESET}"
        yield label, f"{visible(model.name)}{state}"
    asked = "asked of every request" if settings.api_key else "none; only this machine gets in"
    yield "Key", asked


def _place(listener: Listener) -> str:
    return listener.url if listener.path is None else visible(os.fspath(listener.path))
