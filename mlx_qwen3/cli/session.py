"""A conversation at the keyboard: a turn on the screen, and what the commands change."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

from mlx_qwen3.cli.lines import is_screen, quiet_keys
from mlx_qwen3.cli.terminal import PrefillBar, ReplyPrinter, note, note_figures, together

if TYPE_CHECKING:
    from mlx_qwen3.agent.conversation import Conversation
    from mlx_qwen3.agent.loop import ToolResult
    from mlx_qwen3.generation.output import Completion, Event
    from mlx_qwen3.text.tool_calls import ToolCall

_RESULT = 200  # characters of a result in a plain note


class View(Protocol):
    """Where a turn is shown."""

    def show(self, event: Event | ToolResult) -> None:
        """Show an event."""

    def running(self, call: ToolCall) -> None:
        """Show that a call is allowed and runs."""

    def finish(self) -> None:
        """Leave everything in order, whatever has happened."""


class PlainView:
    """For files and pipes: the answers alone on `out`, calls and results in notes beside it."""

    def __init__(self, out: TextIO) -> None:
        self._printer = ReplyPrinter(out, styled=False)

    def show(self, event: Event | ToolResult) -> None:
        """Print an event."""
        if event.kind == "tool_result":
            text = event.text.replace("\n", " ")
            note(f"{event.call.name} -> {text[:_RESULT]}{'…' * (len(text) > _RESULT)}")
        elif event.kind == "answer":
            self._printer.show(event)
        elif event.tool_call is not None and event.tool_call.error is not None:
            note(f"unreadable call ({event.tool_call.error}): {event.tool_call.raw}")
        elif event.tool_call is not None:
            arguments = json.dumps(event.tool_call.arguments, ensure_ascii=False)
            note(f"calls {event.tool_call.name} {arguments}")

    def running(self, call: ToolCall) -> None:
        """Nothing: the call was noted."""

    def finish(self) -> None:
        """End the last line."""
        self._printer.finish()


@dataclass
class Session:
    """What a chat command works on.

    chat: the conversation itself. out: where replies are shown. approve: asked about each call;
    None lets all of them run. folded: whether thoughts leave only a line behind. spent: the
    figures of every reply so far.
    """

    chat: Conversation
    out: TextIO
    approve: Callable[[ToolCall], bool] | None = None
    folded: bool = True
    spent: list[Completion] = field(default_factory=list)
    _view: View | None = None

    def __post_init__(self) -> None:
        self.chat.approve = self._approve

    def check(self) -> None:
        """Raise now what would otherwise spoil every turn: impossible options, no template."""
        self.chat.llm.stream(
            [*self.chat.prompt(), {"role": "user", "content": "Hi"}], **self.chat.options
        ).close()

    def ask(self, text: str) -> None:
        """Send a message and show the turn as it comes.

        However it ends, what was said until then stays in the history. Raises what LLM.stream
        does, and KeyboardInterrupt.
        """
        replies: list[Completion] = []
        with self._screen() as (view, progress):
            events = self.chat.stream(text, progress=progress)
            with contextlib.closing(events):
                for event in events:
                    view.show(event)
                    if event.kind == "end" and event.completion is not None:
                        replies.append(event.completion)
        if replies:
            self.spent += replies
            if sys.stderr.isatty():
                print(file=sys.stderr)  # sets the figures apart from the answer
            note_figures(together(replies))
            if replies[-1].finish_reason == "tool_calls" and self.chat.tools:
                note(f'stopped after {len(replies)} steps; "go on" lets the model go on')

    def switch_thinking(self, wanted: bool) -> bool:
        """Think from now on, or do not; False where the model cannot be switched to that."""
        mode = self.chat.llm.mode
        if mode != "hybrid" and wanted != (mode == "always"):
            return False
        self.chat.options["thinking"] = wanted
        return True

    def last_answer(self) -> str:
        """What the model said last, "" before it has said anything."""
        answers = (m["content"] for m in reversed(self.chat.messages) if m["role"] == "assistant")
        return next((answer for answer in answers if answer), "")

    def last_thought(self) -> str:
        """What the model thought last, "" where it did not."""
        thoughts = (message.get("reasoning_content") for message in reversed(self.chat.messages))
        return next((thought for thought in thoughts if thought), "")

    def _approve(self, call: ToolCall) -> bool:
        allowed = self.approve is None or self.approve(call)
        if allowed and self._view is not None:
            self._view.running(call)
        return allowed

    @contextlib.contextmanager
    def _screen(self) -> Iterator[tuple[View, Callable[[int, int], None] | None]]:
        bar = PrefillBar()
        self._view = view = self._open_view()
        with quiet_keys(sys.stdin):
            try:
                yield view, bar.callback
            finally:
                bar.close()
                view.finish()
                self._view = None

    def _open_view(self) -> View:
        if not is_screen(self.out):
            return PlainView(self.out)
        from mlx_qwen3.cli.view import ChatView

        return ChatView(self.out, folded=self.folded, whole_calls=self.approve is not None)
