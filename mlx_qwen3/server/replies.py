"""From what an API understood to events: replies prepared, started, merged, and ended.

    replies = Replies(service, model, [Ask(messages, {"max_tokens": 100})])
    return await streamed(http_request, replies, write, failed)       # server-sent events
    events = await collected(http_request, replies)                   # or all of them at once

Both wait for the first event before anything is sent, so that what is wrong with a request is
an HTTP error; both end the replies at once when the client goes away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request as HttpRequest

from mlx_qwen3.errors import EngineError
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.llm import LLM
from mlx_qwen3.server.events import KEEP_ALIVE, Chunks, EventStream, while_connected
from mlx_qwen3.server.problems import Problem, explain
from mlx_qwen3.server.record import recorded
from mlx_qwen3.service import ServedModel, Service

# (which reply, its next event): replies of the first prompt come first, copies in order.
Numbered = tuple[int, Event]
_SEEDS = 1 << 64
_AHEAD = 64  # events that may wait for a slow client before its replies wait, too


@dataclass(frozen=True)
class Ask:
    """A prompt as an API understood it.

    prompt, options: what `LLM.request` takes. copies: replies to it; their seeds count up.
    """

    prompt: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    copies: int = 1

    def requests(self, llm: LLM) -> list[Request]:
        """Checked and ready, one for each copy. Raises what `LLM.request` raises."""
        if not self.options.get("raw") and llm.tokenizer.chat_template is None:
            raise Problem(400, "this model has no chat template; send its prompts to completions")
        template = llm.tokenizer.chat_template
        xml = template is not None and template.call_form == "xml"
        request = llm.request(_with_objects(self.prompt) if xml else self.prompt, **self.options)
        return [_reseeded(request, number) for number in range(self.copies)]


class Replies:
    """The replies to one HTTP request. Nothing happens before `start`; `aclose` ends everything.

    model: who replies, held until then. requests: what it was asked, one for each reply.
    """

    model: ServedModel

    def __init__(self, service: Service, name: str | None, asks: Sequence[Ask]) -> None:
        """name: of the model, None for the service's default."""
        self.asks = asks
        self.requests: list[Request] = []
        self._service = service
        self._name = name
        self._held = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(_AHEAD)
        self._first: list[Numbered] = []
        self._closing = False

    async def start(self) -> None:
        """Load the model if need be, check the request, and wait for the first event.

        Raises what `Service.use`, `LLM.request` and `ServedModel.stream` raise.
        """
        self.model = await self._held.enter_async_context(self._service.use(self._name))
        self.requests = await asyncio.to_thread(self._prepare, self.model.llm)
        self._tasks = [
            asyncio.create_task(self._pump(index, request))
            for index, request in enumerate(self.requests)
        ]
        self._first = [await self._next()]

    async def events(self) -> AsyncGenerator[Numbered, None]:
        """Events of all replies as they come; each reply's last is its "end"."""
        running = len(self.requests)
        while running:
            index, event = self._first.pop() if self._first else await self._next()
            running -= event.kind == "end"
            yield index, event

    async def aclose(self) -> None:
        """End what still runs, and let go of the model. May be called twice."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._held.aclose()

    def _prepare(self, llm: LLM) -> list[Request]:
        return [request for ask in self.asks for request in ask.requests(llm)]

    async def _next(self) -> Numbered:
        index, event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return index, event

    async def _pump(self, index: int, request: Request) -> None:
        """Bring one reply's events to the queue; whatever happens, something comes last."""
        failure: Exception = EngineError("the reply broke off; ask again")
        try:
            async with aclosing(recorded(self.model, request)) as events:
                async for event in events:
                    await self._queue.put((index, event))
                    if event.kind == "end":
                        return
        except asyncio.CancelledError:
            if self._closing:
                raise
        except Exception as exc:  # noqa: BLE001 - raised where the events are read
            failure = exc
        await self._queue.put((index, failure))


Write = Callable[[Replies], Chunks]
Fail = Callable[[Problem], bytes]


async def collected(http: HttpRequest, replies: Replies) -> list[list[Event]]:
    """All events of each reply. Raises Disconnected, and what went wrong."""
    try:
        return await while_connected(http.receive, _collect(replies))
    finally:
        await replies.aclose()


async def streamed(
    http: HttpRequest, replies: Replies, write: Write, failed: Fail, keep_alive: bytes = KEEP_ALIVE
) -> EventStream:
    """A response that writes the replies as they come; they have begun when it is returned.

    write: the replies, started, as the API writes them. failed: how it writes that one broke
    off. keep_alive: what it writes while nothing comes. Raises Disconnected, and what went wrong.
    """
    try:
        await while_connected(http.receive, replies.start())
    except BaseException:
        await replies.aclose()
        raise
    return EventStream(_written(replies, write, failed), replies.aclose, keep_alive=keep_alive)


async def _collect(replies: Replies) -> list[list[Event]]:
    await replies.start()
    events: list[list[Event]] = [[] for _ in replies.requests]
    async for index, event in replies.events():
        events[index].append(event)
    return events


async def _written(replies: Replies, write: Write, failed: Fail) -> Chunks:
    try:
        async with aclosing(write(replies)) as chunks:
            async for chunk in chunks:
                yield chunk
    except Exception as exc:  # noqa: BLE001 - `explain` logs what is not the client's
        yield failed(explain(exc))


def _with_objects(prompt: Any) -> Any:
    """The messages, arguments of calls as objects: the XML form writes them one by one."""
    if isinstance(prompt, str):
        return prompt
    return [
        {**one, "tool_calls": [_with_object(call) for call in one["tool_calls"]]}
        if isinstance(one, Mapping) and one.get("tool_calls")
        else one
        for one in prompt
    ]


def _with_object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    if not isinstance(function["arguments"], str):
        return call
    with suppress(ValueError, RecursionError):
        arguments = json.loads(function["arguments"])
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call  # which the template refuses


def _reseeded(request: Request, number: int) -> Request:
    seed = request.params.seed
    if seed is None or number == 0:
        return request
    return replace(request, params=replace(request.params, seed=(seed + number) % _SEEDS))
