"""OpenAI's Responses API: POST /v1/responses."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_qwen3.server.body import Limits, read_body
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.events import Chunks, sse
from mlx_qwen3.server.openai_errors import openai_error, openai_problem
from mlx_qwen3.server.problems import Handler, Problem, answering
from mlx_qwen3.server.replies import Replies, collected, streamed
from mlx_qwen3.server.responses_body import ResponsesBody
from mlx_qwen3.server.responses_events import ResponseEvents
from mlx_qwen3.server.responses_items import Items
from mlx_qwen3.server.responses_prompt import ask
from mlx_qwen3.service import Service

RESPONSES = Endpoint(
    "POST", "/v1/responses", "A response (OpenAI)", body=ResponsesBody, streams=True
)
ENDPOINTS = (RESPONSES,)


def routes(service: Service, limits: Limits) -> list[Route]:
    """Where the API is."""
    return [RESPONSES.route(_responses(service, limits))]


def _responses(service: Service, limits: Limits) -> Handler:
    @answering(openai_problem)
    async def create(http: Request) -> Response:
        body = await read_body(http, ResponsesBody, limits)
        replies = Replies(service, body.model, [ask(body)])
        if body.stream:
            stream = _Stream(body)
            return await streamed(http, replies, stream.write, stream.failed)
        [events] = await collected(http, replies)
        made = _events(body, replies)
        for event in events:
            made.take(event)
        return JSONResponse(made.response())

    return create


@dataclass
class _Stream:
    """What a response says as it is made; how it ends may depend on how far it got."""

    body: ResponsesBody
    made: ResponseEvents | None = None

    async def write(self, replies: Replies) -> Chunks:
        self.made = _events(self.body, replies)
        for said in self.made.start():
            yield _named(said)
        async for _, event in replies.events():
            for said in self.made.take(event):
                yield _named(said)

    def failed(self, problem: Problem) -> bytes:
        if self.made is None:
            return sse(openai_error(problem), "error")
        return _named(self.made.failed(problem))


def _events(body: ResponsesBody, replies: Replies) -> ResponseEvents:
    items = Items(replies.model.llm.tokenizer.token_bytes)
    return ResponseEvents(body, replies.model.name, replies.requests[0], items)


def _named(event: dict[str, object]) -> bytes:
    return sse(event, str(event["type"]))
