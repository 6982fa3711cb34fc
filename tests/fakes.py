"""Stand-ins for what is slow or unpredictable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlx_qwen3.generation.output import Completion, Event, FinishReason, Timing, Usage
from mlx_qwen3.text.tool_calls import ToolCall

# Events, and exceptions that end the reply where they stand.
Script = Sequence[Event | BaseException]


class FakeLLM:
    """An LLM whose replies are written beforehand, one script for each turn.

    An exception in place of a script is raised before anything is generated, as `LLM.stream`
    refuses a request. prompts and options hold what every call was given; closed counts the
    replies whose generator was ended, by its end or by force.
    """

    def __init__(
        self, *scripts: Script | BaseException, mode: str = "hybrid", context_length: int = 40_960
    ) -> None:
        self.mode = mode
        self.context_length = context_length
        self.prompts: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.closed = 0
        self._scripts = list(scripts)

    def stream(
        self,
        prompt: Any,
        *,
        thinking: bool | None = None,
        tools: Sequence[Any] | None = None,
        raw: bool = False,
        max_kv_size: int | None = None,
        kv_bits: int | None = None,
        speculation: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """The next script; a prompt that shows up later was copied now."""
        self.prompts.append(copy.deepcopy(prompt))
        named = {
            "thinking": thinking,
            "tools": tools,
            "max_kv_size": max_kv_size,
            "kv_bits": kv_bits,
            "speculation": speculation,
        }
        given = {name: value for name, value in named.items() if value is not None}
        self.options.append({**given, **options})
        script = self._scripts.pop(0)
        if isinstance(script, BaseException):
            raise script
        return self._play(script)

    def _play(self, script: Script) -> Iterator[Event]:
        try:
            for event in script:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed += 1


def thinks(text: str) -> Event:
    return Event("thinking", text)


def says(text: str) -> Event:
    return Event("answer", text)


def calls(name: str, error: str | None = None, **arguments: Any) -> Event:
    """A tool call; with an error, one whose text made no sense."""
    raw = f"<tool_call>{name}</tool_call>"
    return Event("tool_call", raw, ToolCall(name, arguments, raw, error))


def ends(finish_reason: FinishReason = "stop", thinking_tokens: int = 0) -> Event:
    """The last event. Its completion carries figures, no text."""
    completion = Completion(
        text="",
        thinking="",
        tool_calls=(),
        token_ids=(),
        finish_reason=finish_reason,
        usage=Usage(12, 34, thinking_tokens),
        timing=Timing(load=0.1, prefill=0.25, decode=2.0, tokens_per_second=17.0),
        peak_memory_bytes=1_500_000_000,
    )
    return Event("end", completion=completion)
