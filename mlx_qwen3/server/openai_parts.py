"""What OpenAI's replies consist of: calls, tokens and their probabilities, usage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen3._version import __version__
from mlx_qwen3.generation.output import Completion, Event, TokenLogprob, Usage
from mlx_qwen3.server.ids import new_id

# The same version gives the same text for a seed, on one backend.
SYSTEM_FINGERPRINT = f"mlx-qwen3-{__version__}"
_LEAST = -9999.0  # JSON has no infinity; OpenAI writes this in its place
TokenBytes = Callable[[int], bytes]


@dataclass
class WrittenCall:
    """A tool call as the model wrote it. arguments: JSON text."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


@dataclass
class Calls:
    """The tool calls of one reply, put together from its events."""

    _begun: dict[int, WrittenCall] = field(default_factory=dict)

    def add(self, event: Event) -> tuple[WrittenCall, bool] | None:
        """The call an event belongs to, and whether it is new; None for other events."""
        delta = event.call
        if delta is None:
            return None
        new = delta.index not in self._begun
        call = self._begun.setdefault(delta.index, WrittenCall(new_id("call_"), delta.name))
        call.arguments += delta.arguments
        call.complete = event.tool_call is not None
        return call, new

    def complete(self) -> list[WrittenCall]:
        """Those that can be read; what was cut off, or makes no sense, is text."""
        return [call for call in self._begun.values() if call.complete]


def usage_of(completions: Sequence[Completion], prompts: int = 1) -> dict[str, Any]:
    """OpenAI's usage. completions: as many for each of the prompts, which count once."""
    own = [completion.usage for completion in completions]
    asked, used = own[:: max(1, len(own) // prompts)], _sum(own)
    prompt_tokens = sum(one.prompt_tokens for one in asked)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in asked)},
        "completion_tokens_details": {"reasoning_tokens": used.thinking_tokens},
    }


def _sum(usages: Iterable[Usage]) -> Usage:
    total = Usage(0, 0)
    for one in usages:
        total = Usage(
            total.prompt_tokens + one.prompt_tokens,
            total.completion_tokens + one.completion_tokens,
            total.thinking_tokens + one.thinking_tokens,
        )
    return total


def completion_of(events: Sequence[Event]) -> Completion:
    """The whole reply that a reply's events end with."""
    completion = events[-1].completion
    if completion is None:
        raise ValueError("these events have no end")
    return completion


def chat_logprobs(tokens: Iterable[TokenLogprob], token_bytes: TokenBytes) -> dict[str, Any]:
    """The logprobs of a choice in chat/completions. token_bytes: the tokenizer's."""

    def spelled(token_id: int, token: str, logprob: float) -> dict[str, Any]:
        written = list(token_bytes(token_id))
        return {"token": token, "logprob": finite(logprob), "bytes": written}

    content = [
        {
            **spelled(one.token_id, one.token, one.logprob),
            "top_logprobs": [spelled(*entry) for entry in one.top],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it."""
    return max(logprob, _LEAST)
