"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_qwen3.server.anthropic_body import CountBody, MessagesBody, ThinkingOff
from mlx_qwen3.server.anthropic_errors import anthropic_error, anthropic_problem, new_request_id
from mlx_qwen3.server.anthropic_events import MessageEvents
from mlx_qwen3.server.anthropic_prompt import MessageAsk, count
from mlx_qwen3.server.body import Limits, read_body
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.events import Chunks, sse
from mlx_qwen3.server.parts import never
from mlx_qwen3.server.problems import Handler, Problem, answering
from mlx_qwen3.server.replies import Replies, collected, streamed
from mlx_qwen3.service import Service

MESSAGES = Endpoint(
    "POST", "/v1/messages", "A message (Anthropic)", body=MessagesBody, streams=True
)
COUNT_TOKENS = Endpoint(
    "POST", "/v1/messages/count_tokens", "Tokens of a prompt (Anthropic)", body=CountBody
)
ENDPOINTS = (MESSAGES, COUNT_TOKENS)

_PING = sse({"type": "ping"}, "ping")
# With this beta, calls of all tools stream as they are written.
_EAGER_BETA = "fine-grained-tool-streaming"


def routes(service: Service, limits: Limits) -> list[Route]:
    """Where the API is."""
    return [
        MESSAGES.route(_messages(service, limits)),
        COUNT_TOKENS.route(_count_tokens(service, limits)),
    ]


def _messages(service: Service, limits: Limits) -> Handler:
    @answering(anthropic_problem)
    async def create(http: Request) -> Response:
        body = await read_body(http, MessagesBody, limits)
        replies = Replies(service, body.model, [MessageAsk.of(body)])
        if body.stream:
            return await _streamed(http, replies, body)
        [events] = await collected(http, replies)
        made = _events(replies, body)
        for event in events:
            made.take(event)
        return JSONResponse(made.message(), headers=_headers(new_request_id()))

    return create


async def _streamed(http: Request, replies: Replies, body: MessagesBody) -> Response:
    request_id = new_request_id()

    async def write(started: Replies) -> Chunks:
        made = _events(started, body, _live(http, body))
        yield _named(made.start())
        async for _, event in started.events():
            for said in made.take(event):
                yield _named(said)

    def failed(problem: Problem) -> bytes:
        return _named(anthropic_error(problem, request_id))

    response = await streamed(http, replies, write, failed, _PING)
    response.headers.update(_headers(request_id))
    return response


def _events(
    replies: Replies, body: MessagesBody, live: Callable[[str], bool] = never
) -> MessageEvents:
    thinking = body.thinking
    hidden = not (thinking is None or isinstance(thinking, ThinkingOff)) and (
        thinking.display == "omitted"
    )
    return MessageEvents(
        body.model,
        replies.requests[0],
        body.max_tokens,
        shows_thinking=not hidden,
        live=live,
    )


def _live(http: Request, body: MessagesBody) -> Callable[[str], bool]:
    """Whose calls stream before they are complete: only where the client asked for that."""
    beta = _EAGER_BETA in http.headers.get("anthropic-beta", "")
    eager = {tool.name: tool.eager_input_streaming for tool in body.tools or ()}
    return lambda name: beta if eager.get(name) is None else bool(eager[name])


def _count_tokens(service: Service, limits: Limits) -> Handler:
    @answering(anthropic_problem)
    async def answer(http: Request) -> Response:
        body = await read_body(http, CountBody, limits)
        async with service.use(body.model) as model:
            tokens = await asyncio.to_thread(count, body, model.llm)
        return JSONResponse({"input_tokens": tokens}, headers=_headers(new_request_id()))

    return answer


def _headers(request_id: str) -> dict[str, str]:
    return {"request-id": request_id}


def _named(event: dict[str, object]) -> bytes:
    return sse(event, str(event["type"]))
