"""One conversation: its history, its settings, and a turn of it on the screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from mlx_qwen3.cli.terminal import note_figures, reply_view

if TYPE_CHECKING:
    from mlx_qwen3.generation.output import Completion, Event
    from mlx_qwen3.text.tool_calls import ToolCall

Message = dict[str, Any]


class Talker(Protocol):
    """What a session needs of an LLM."""

    @property
    def mode(self) -> str:
        """How it thinks: "hybrid", "always" or "never"."""

    def stream(
        self, prompt: Any, *, progress: Callable[[int, int], None] | None = None, **options: Any
    ) -> Generator[Event, None, None]:
        """The events of a reply."""


@dataclass
class Session:
    """A conversation with a model. Owns its messages.

    out: where replies are printed. system: the system message, which is not one of `messages`
    and so outlives a reset. options: what LLM.stream gets in every turn, "thinking" included.
    messages: the turns so far in OpenAI's form, reasoning_content and all: it is the chat
    template that decides how much of it the model sees again.
    """

    llm: Talker
    out: TextIO
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    def check(self) -> None:
        """Raise now what would otherwise spoil every turn: impossible options, no template."""
        self._events("Hi").close()

    def ask(self, text: str) -> None:
        """Send a message and print the reply as it comes.

        However it ends, what was said until then stays in the history; a message that nothing
        was said to leaves no trace. Raises what LLM.stream does, and KeyboardInterrupt.
        """
        said = Said()
        try:
            with (
                reply_view(self.out) as (printer, progress),
                contextlib.closing(self._events(text, progress)) as events,
            ):
                for event in events:
                    said.add(event)
                    printer.show(event)
        finally:
            if said:
                self.messages += [_user(text), said.message()]
        if said.completion is not None:
            note_figures(said.completion)

    def switch_thinking(self, wanted: bool) -> bool:
        """Think from now on, or do not; False where the model cannot be switched to that."""
        if self.llm.mode != "hybrid" and wanted != (self.llm.mode == "always"):
            return False
        self.options["thinking"] = wanted
        return True

    def _events(
        self, text: str, progress: Callable[[int, int], None] | None = None
    ) -> Generator[Event, None, None]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        prompt = [*system, *self.messages, _user(text)]
        return self.llm.stream(prompt, progress=progress, **self.options)


@dataclass
class Said:
    """What has come of a reply so far; one that was stopped has no completion. True if anything."""

    thinking: str = ""
    answer: str = ""
    tool_calls: list[Mapping[str, Any]] = field(default_factory=list)
    completion: Completion | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        if event.kind == "thinking":
            self.thinking += event.text
        elif event.kind == "answer":
            self.answer += event.text
        elif event.tool_call is not None and event.tool_call.error is None:
            self.tool_calls.append(_call(event.tool_call))
        elif event.tool_call is not None:  # unreadable: only its words can be passed back
            self.answer += f"\n{event.text}" if self.answer else event.text
        self.completion = event.completion

    def __bool__(self) -> bool:
        return bool(self.thinking or self.answer or self.tool_calls or self.completion)

    def message(self) -> Message:
        """The assistant's turn in OpenAI's form."""
        message: Message = {"role": "assistant", "content": self.answer}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _call(call: ToolCall) -> Mapping[str, Any]:
    # Arguments stay an object: Qwen3's templates take both, others only that.
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
