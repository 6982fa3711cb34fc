"""A reply's events -> an OpenAI response, whole or as it streams."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.parts import Parts
from mlx_qwen3.server.problems import Problem
from mlx_qwen3.server.responses_body import ResponsesBody
from mlx_qwen3.server.responses_items import Items, item_id

Json = dict[str, Any]


@dataclass
class ResponseEvents:
    """One response in the making.

    body: what was asked, much of which a response repeats. request: what `model` replies to.
    """

    body: ResponsesBody
    model: str
    request: Request
    items: Items
    id: str = field(default_factory=lambda: new_id("resp_"))
    created_at: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        # Under a grammar nothing but the end of the tokens breaks a call, and that shows.
        held = self.request.constraint is not None
        self._parts = Parts(item_id, lambda name: held)
        self._number = 0

    def start(self) -> list[Json]:
        """The first events: a response with nothing in it yet."""
        kinds = ("response.created", "response.in_progress")
        return [self._numbered({"type": kind, "response": self._response()}) for kind in kinds]

    def take(self, event: Event) -> list[Json]:
        """The API's events for one of a reply; after the last one the response is complete."""
        if event.completion is not None and self._silent(event.completion):
            # Clients wait for a message, even if there is nothing to say.
            return [*self.take(Event("answer")), *self._take(event)]
        return self._take(event)

    def response(self) -> Json:
        """The whole response, once "end" was taken."""
        completion = self._parts.completion
        if completion is None:
            raise RuntimeError("the reply has not ended")
        usage = _usage(completion)
        if completion.finish_reason == "length":
            details = {"reason": "max_output_tokens"}
            return self._response("incomplete", incomplete_details=details, usage=usage)
        return self._response("completed", usage=usage, completed_at=int(time.time()))

    def failed(self, problem: Problem) -> Json:
        """The last event of a response that broke off."""
        code = "rate_limit_exceeded" if problem.status == 429 else "server_error"
        error = {"code": code, "message": problem.message}
        response = self._response("failed", error=error)
        return self._numbered({"type": "response.failed", "response": response})

    def _take(self, event: Event) -> list[Json]:
        said = [
            self._numbered(one)
            for change in self._parts.take(event)
            for one in self.items.events(change)
        ]
        if event.completion is None:
            return said
        response = self.response()
        kind = f"response.{response['status']}"
        return [*said, self._numbered({"type": kind, "response": response})]

    def _silent(self, completion: Completion) -> bool:
        spoken = any(part.kind != "thinking" for part in self._parts.all)
        return not spoken and completion.finish_reason != "length"

    def _numbered(self, event: Json) -> Json:
        self._number += 1
        return {**event, "sequence_number": self._number - 1}

    def _response(self, status: str = "in_progress", **fields: Any) -> Json:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            "output": [self.items.item(part) for part in self._parts.closed],
            **_repeated(self.body, self.request),
            "model": self.model,
            **fields,
        }


def _usage(completion: Completion) -> Json:
    usage = completion.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
        "total_tokens": usage.total_tokens,
    }


# What a response has of its body, and what it has where the body says nothing.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "top_logprobs": 0,
    "truncation": "disabled",
    "user": None,
}


def _repeated(body: ResponsesBody, request: Request) -> Json:
    said = body.model_dump(include=set(_REPEATED), by_alias=True, exclude_none=True)
    tools = [_tool(tool.model_dump(exclude_none=True)) for tool in body.tools or ()]
    return {
        **_REPEATED,
        **said,
        "background": False,
        "service_tier": "default",
        "store": False,
        "temperature": request.params.temperature,
        "tools": tools,
        "top_p": request.params.top_p,
    }


def _tool(tool: Json) -> Json:
    return {"parameters": None, "strict": False, "description": None, **tool}
