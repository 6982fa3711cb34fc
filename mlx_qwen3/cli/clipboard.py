"""To the clipboard: by the desktop's own program, or through the terminal (OSC 52)."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from typing import TextIO

# Program, its arguments, and the environment variable without which it has nothing to talk to.
_PROGRAMS = (
    ("pbcopy", (), ""),
    ("wl-copy", (), "WAYLAND_DISPLAY"),
    ("xclip", ("-selection", "clipboard"), "DISPLAY"),
    ("xsel", ("--clipboard", "--input"), "DISPLAY"),
)
_PATIENCE = 5.0  # seconds


def copy(text: str, terminal: TextIO) -> str:
    """Put a text on the clipboard and say how; "" where there is no way to."""
    for name, arguments, needs in _PROGRAMS:
        if shutil.which(name) and (not needs or os.environ.get(needs)):
            try:
                command = [name, *arguments]
                # Not captured: wl-copy and xclip leave a child that would hold the pipe open.
                subprocess.run(
                    command,
                    input=text.encode(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=_PATIENCE,
                    check=True,
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return name
    if not terminal.isatty():
        return ""
    terminal.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
    terminal.flush()
    return "the terminal (OSC 52)"
