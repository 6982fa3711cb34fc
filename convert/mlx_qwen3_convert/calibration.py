"""The text that models are measured on: bundled, or a file of the user's.

The bundled text was written for this project, in many languages, programming languages and
chat turns. Recipes are made on one half (`CALIBRATION`) and judged on the other (`EVALUATION`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mlx_qwen3.errors import OptionError
from mlx_qwen3.text.tokenizer import Tokenizer

Half = Literal["calibration", "evaluation"]
CALIBRATION: Half = "calibration"
EVALUATION: Half = "evaluation"
_DATA = Path(__file__).parent / "data"
_SHORTEST = 2  # tokens: one to read and one to predict

# Tokens that are read together, nothing before them; each but the first is predicted.
Window = list[int]


def read_text(file: str | Path | None, half: Half) -> str:
    """A UTF-8 text file, or the bundled half. Raises OptionError naming the file."""
    if file is None:
        files = sorted((_DATA / half).glob("*.txt"))
        return "<|endoftext|>".join(path.read_text(encoding="utf-8") for path in files)
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise OptionError(f"{file}: cannot be read as UTF-8 text ({exc}); give another") from exc


def read_windows(
    folder: Path, *, text: str, context: int = 512, tokens: int | None = None
) -> list[Window]:
    """The text in the tokens of this checkpoint, cut into windows.

    context: tokens of a window. tokens: how many at most, in windows spread over the whole
    text; None: all. Raises OptionError for impossible numbers or a text too short.
    """
    for name, value in (("context", context), ("tokens", context if tokens is None else tokens)):
        if value < _SHORTEST:
            raise OptionError(f"{name} is {value}; expected {_SHORTEST} or more")
    found = cut(Tokenizer.from_folder(folder).encode(text), context)
    if not found:
        raise OptionError("the text has fewer than two tokens; give a longer one")
    return spread(found, tokens, context)


def cut(token_ids: Sequence[int], context: int) -> list[Window]:
    """Windows of `context` tokens; the last may be shorter."""
    starts = range(0, len(token_ids), context)
    windows = [list(token_ids[start : start + context]) for start in starts]
    return [window for window in windows if len(window) >= _SHORTEST]


def spread(windows: list[Window], tokens: int | None, context: int) -> list[Window]:
    """At most `tokens` tokens' worth, evenly from the beginning to the end of the text."""
    if tokens is None or tokens >= sum(map(len, windows)):
        return windows
    count = min(max(tokens // context, 1), len(windows))
    chosen = np.linspace(0, len(windows) - 1, count + 2)[1:-1].round().astype(int)
    return [windows[index][:tokens] for index in chosen]
