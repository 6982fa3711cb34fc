"""Models by name, and replies from them: what a server needs, whatever it speaks.

service = Service({"qwen3-0.6b": "0.6b"})
await service.start()
async with service.use("qwen3-0.6b") as model:      # loaded if need be, held while in use
    request = model.llm.request(messages, ...)       # slow for long prompts: on a thread
    async with aclosing(model.stream(request)) as events:
        async for event in events: ...
await service.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from mlx_qwen3.errors import ModelNotFoundError
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.llm import LLM, load

ModelState = Literal["unloaded", "loading", "loaded", "failed"]


@dataclass(frozen=True)
class ModelInfo:
    """A model on offer. mode, context_length: known once it was loaded.

    mode: how it thinks: "hybrid", "always" or "never". context_length: tokens.
    """

    name: str
    state: ModelState
    mode: str | None = None
    context_length: int | None = None


class ServedModel:
    """A loaded model, held for one user of it."""

    def __init__(self, name: str, llm: LLM, turn: asyncio.Lock) -> None:
        self.name = name
        self.llm = llm
        self._turn = turn

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The reply's events, "end" last. Closing the iterator stops the work.

        Raises BusyError before the first event when there is no room even to wait, EngineError
        when the engine fails, other Qwen3Errors for this one reply.
        """
        async with self._turn:
            reply = self.llm._reply(request, None)
            for event in self.llm._run(reply, None):
                yield event
                await asyncio.sleep(0)


class Service:
    """models: name -> what to load: a short name, repo id or folder. The first is the default."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._sources = dict(models)
        self._loaded: dict[str, ServedModel] = {}

    def models(self) -> list[ModelInfo]:
        """Every model on offer, in the order they were given."""
        return [self._info(name) for name in self._sources]

    async def start(self) -> None:
        """Start the engine, and load the default model."""
        async with self.use(next(iter(self._sources))):
            pass

    async def close(self, deadline: float = 30.0) -> None:
        """Refuse new work, let running replies finish for so many seconds, then end them."""

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[ServedModel]:
        """A loaded model, which stays loaded until the block is left. None: the default.

        Raises ModelNotFoundError, CheckpointError, BusyError when nothing can make room for it.
        """
        name = next(iter(self._sources)) if name is None else name
        if name not in self._sources:
            offered = ", ".join(self._sources)
            raise ModelNotFoundError(f"no model {name!r} here; on offer: {offered}")
        if name not in self._loaded:
            llm = await asyncio.to_thread(load, self._sources[name])
            self._loaded[name] = ServedModel(name, llm, asyncio.Lock())
        yield self._loaded[name]

    def _info(self, name: str) -> ModelInfo:
        served = self._loaded.get(name)
        if served is None:
            return ModelInfo(name, "unloaded")
        return ModelInfo(name, "loaded", served.llm.mode, served.llm.context_length)
