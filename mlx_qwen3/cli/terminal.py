"""What a person sees of a reply: dimmed thinking, the answer, tool calls, one line of figures.

Escape sequences are written by this file only; control characters that a model writes are
replaced, so that its text cannot move the cursor or retitle the window.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from mlx_qwen3.generation.output import Completion, Event
    from mlx_qwen3.text.tool_calls import ToolCall

DIM, CYAN, RESET = "\x1b[2m", "\x1b[36m", "\x1b[0m"
_BAR_FROM = 512  # prompt tokens from which reading them deserves a progress bar

# C0 and C1 controls but newline and tab, shown as the replacement character.
CONTROLS = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if code not in (9, 10)}
CONTROLS[13] = ""


class ReplyPrinter:
    """Prints the events of one reply as they come.

    On a terminal: thinking dimmed, tool calls in colour. Elsewhere: the answer and tool calls
    alone, so that `mlx-qwen3 generate ... > file` holds what was asked for.
    """

    def __init__(self, out: TextIO, *, styled: bool) -> None:
        self._out = out
        self._styled = styled
        self._kind = ""
        self._at_line_start = True

    def show(self, event: Event) -> None:
        """Print one event and flush: a stream is read as it is written."""
        if event.kind == "end" or (event.kind == "thinking" and not self._styled):
            return
        if event.kind == "tool_call" and event.tool_call is None:
            return  # a call is shown when it is complete
        text = _describe(event.tool_call) if event.tool_call else event.text
        if self._styled:
            text = text.translate(CONTROLS)
        self._begin(event.kind)
        self._write(text)
        self._out.flush()

    def break_line(self) -> None:
        """Have the line ended even if it is empty: a terminal has echoed "^C" on it."""
        self._at_line_start = self._at_line_start and not self._styled

    def finish(self) -> None:
        """End the last line and all styling, also after an interruption."""
        if self._styled and self._kind in _STYLES:
            self._out.write(RESET)
        if not self._at_line_start:
            self._out.write("\n")
        self._kind, self._at_line_start = "", True
        self._out.flush()

    # Ctrl-C strikes inside of a write, which then is done: what a write is going to change is
    # noted before it, so that `finish` ends it.

    def _begin(self, kind: str) -> None:
        """Switch style; kinds are set apart by an empty line, calls by a line each."""
        if kind == self._kind != "tool_call":
            return
        if self._kind:
            if self._styled and self._kind in _STYLES:
                self._out.write(RESET)
            both_calls = kind == self._kind == "tool_call"
            gap = 1 if both_calls or not self._styled else 2
            self._write("\n" * (gap - 1 if self._at_line_start else gap))
        self._kind = kind
        if self._styled:
            self._out.write(_STYLES.get(kind, ""))

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
        self._out.write(text)


@contextlib.contextmanager
def reply_view(out: TextIO) -> Iterator[tuple[ReplyPrinter, Callable[[int, int], None] | None]]:
    """A printer for one reply, and the progress callback that reading its prompt is to get.

    Line, styling and bar are ended in the end, whatever ends it.
    """
    bar, printer = PrefillBar(), ReplyPrinter(out, styled=out.isatty())
    try:
        yield printer, bar.callback
    except KeyboardInterrupt:
        printer.break_line()
        raise
    finally:
        bar.close()
        printer.finish()


_STYLES = {"thinking": DIM, "tool_call": CYAN}


def _describe(call: ToolCall) -> str:
    """A call as its JSON, or as written when it could not be read."""
    if call.error is not None:
        return f"{call.raw} ({call.error})"
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def figures(completion: Completion) -> str:
    """One line about a reply: tokens, speed, memory."""
    usage, timing = completion.usage, completion.timing
    thought = f" ({usage.thinking_tokens} of them thinking)" if usage.thinking_tokens else ""
    kept = f" ({usage.cached_tokens} of them before)" if usage.cached_tokens else ""
    guessed = (
        f" ({completion.accepted_tokens} of {completion.proposed_tokens} guesses right)"
        if completion.proposed_tokens
        else ""
    )
    used = completion.experts
    streamed = (
        f"{used.hit_rate:.0%} of the experts in memory, {_memory(int(used.bytes_per_token))} "
        "read a token · "
        if used is not None
        else ""
    )
    ended = " · cut off: no tokens left" if completion.finish_reason == "length" else ""
    return (
        f"{usage.prompt_tokens} tokens read{kept} in {timing.prefill:.2f} s · "
        f"{usage.completion_tokens} written{thought} at {timing.tokens_per_second:.1f} tokens/s"
        f"{guessed} · {streamed}"
        f"peak memory {_memory(completion.peak_memory_bytes)}{ended}"
    )


def _memory(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def as_json(completion: Completion) -> dict[str, Any]:
    """What `--json` prints of a reply."""
    timing = completion.timing
    return {
        "text": completion.text,
        "thinking": completion.thinking,
        "tool_calls": [_call_as_json(call) for call in completion.tool_calls],
        "token_ids": list(completion.token_ids),
        "prompt_tokens": completion.usage.prompt_tokens,
        "completion_tokens": completion.usage.completion_tokens,
        "finish_reason": completion.finish_reason,
        "timing": {
            "load": timing.load,
            "prefill": timing.prefill,
            "decode": timing.decode,
            "tokens_per_second": timing.tokens_per_second,
        },
        "peak_memory_bytes": completion.peak_memory_bytes,
        **({} if completion.experts is None else {"experts": asdict(completion.experts)}),
    }


def _call_as_json(call: ToolCall) -> Mapping[str, Any]:
    plain: dict[str, Any] = {"name": call.name, "arguments": call.arguments}
    return plain if call.error is None else {**plain, "raw": call.raw, "error": call.error}


def visible(text: str) -> str:
    """A text of somebody else's in one line that cannot control the terminal."""
    return text.translate({**CONTROLS, 9: " ", 10: " "})


def note(text: str) -> None:
    """Lines beside the output: on stderr, dimmed on a terminal, which they cannot control."""
    styled = f"{DIM}{text.translate(CONTROLS)}{RESET}" if sys.stderr.isatty() else text
    print(styled, file=sys.stderr, flush=True)


def together(completions: Sequence[Completion]) -> Completion:
    """The replies of one turn as one, for their figures: tokens and seconds added up."""
    last = completions[-1]
    usages, timings = [one.usage for one in completions], [one.timing for one in completions]
    decode = sum(timing.decode for timing in timings)
    after_first = sum(max(usage.completion_tokens - 1, 0) for usage in usages)
    usage = replace(
        last.usage,
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        thinking_tokens=sum(usage.thinking_tokens for usage in usages),
    )
    timing = replace(
        last.timing,
        prefill=sum(timing.prefill for timing in timings),
        decode=decode,
        tokens_per_second=after_first / decode if decode > 0 else 0.0,
    )
    return replace(last, usage=usage, timing=timing)


def note_figures(completion: Completion) -> None:
    """A reply's warnings, and its line of figures for a person: programs have no use for it."""
    for warning in completion.warnings:
        note(f"warning: {warning}")
    if sys.stderr.isatty():
        width = max(shutil.get_terminal_size().columns - 1, 20)
        note("\n".join(_broken(figures(completion), width)))


def _broken(line: str, width: int) -> list[str]:
    """A line in several, where it is too long; broken between its figures."""
    lines: list[str] = []
    for figure in line.split(" · "):
        if lines and len(lines[-1]) + len(figure) + 3 <= width:
            lines[-1] += f" · {figure}"
        else:
            lines.append(figure)
    return lines


class PrefillBar:
    """A progress bar for long prompts, on stderr and only on a terminal.

    `callback` is None where no bar is wanted, which spares the device a wait.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self.callback: Callable[[int, int], None] | None = (
            self._advance if sys.stderr.isatty() else None
        )

    def _advance(self, done: int, total: int) -> None:
        if total < _BAR_FROM:
            return
        if self._bar is None:
            self._start(total)
        self._bar.update(0, completed=done)
        if done >= total:
            self.close()

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._bar.add_task("reading the prompt", total=total)
        self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
