"""Models by name, and replies from them: what a server needs, whatever it speaks.

    service = Service({"qwen3-0.6b": "0.6b"})
    await service.start()
    async with service.use("qwen3-0.6b") as model:      # loaded if need be, held while in use
        request = model.llm.request(messages, ...)       # slow for long prompts: on a thread
        async with aclosing(model.stream(request)) as events:
            async for event in events: ...
    await service.close()

Replies are made by one engine for all models. Models are loaded on a thread of their own, so that
streams of others go on meanwhile, and the least recently used goes when memory is short.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from mlx_qwen3.device import MARGIN, Device
from mlx_qwen3.engine.engine import Engine
from mlx_qwen3.engine.scheduler import ModelParts, Scheduler
from mlx_qwen3.engine.settings import EngineSettings, PrefixCache
from mlx_qwen3.engine.statistics import Statistics
from mlx_qwen3.errors import BusyError, EngineError, ModelNotFoundError
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.hub import resolve
from mlx_qwen3.llm import LLM, load

_log = logging.getLogger(__name__)

ModelState = Literal["unloaded", "loading", "loaded", "failed"]
ServiceState = Literal["loading", "ready", "stopping", "failed"]
Result = TypeVar("Result")
_LOADING_AGAIN = 10.0  # seconds after which to ask again for a model there is no room for


@dataclass(frozen=True)
class ServiceSettings:
    """engine: how replies share a model.

    model_memory: bytes that the weights of loaded models may take; None: what models get here.
    idle_unload: seconds without a request after which a model goes; None: it stays.
    prefix_cache, dtype: see `load`.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    model_memory: int | None = None
    idle_unload: float | None = None
    prefix_cache: bool | PrefixCache = True
    dtype: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model on offer. mode, context_length: known once it was loaded.

    mode: how it thinks: "hybrid", "always" or "never". context_length: tokens.
    failure: why it could not be loaded the last time.
    """

    name: str
    state: ModelState
    mode: str | None = None
    context_length: int | None = None
    failure: str | None = None


class ServedModel:
    """A loaded model, held for one user of it."""

    def __init__(self, name: str, llm: LLM, engine: Engine, lane: Scheduler) -> None:
        self.name = name
        self.llm = llm
        self._engine = engine
        self._lane = lane

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The reply's events, "end" last. Closing the iterator stops the work.

        Raises BusyError before the first event when there is no room even to wait, EngineError
        when the engine fails, other Qwen3Errors for this one reply.
        """
        mailbox = _Mailbox(asyncio.get_running_loop())
        ticket = self._engine.submit(self._lane, request, mailbox.put)
        try:
            while True:
                for event in await mailbox.take():
                    yield event
                    if event.kind == "end":
                        return
        finally:
            ticket.cancel()


class _Mailbox:
    """Brings events from the engine's thread into an event loop, several at one waking."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived = asyncio.Event()
        self._news: deque[Sequence[Event] | Exception] = deque()
        self._announced = False

    def put(self, news: Sequence[Event] | Exception) -> None:
        """Called on the engine's thread."""
        self._news.append(news)
        if not self._announced:  # else `_wake` is still to come, and what it wakes takes this, too
            self._announced = True
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._announced = False
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Everything that arrived, at least one thing. Raises what arrived as an exception."""
        await self._arrived.wait()
        self._arrived.clear()
        events: list[Event] = []
        while self._news:
            news = self._news.popleft()
            if isinstance(news, Exception):
                if not events:
                    raise news
                self._news.appendleft(news)  # after what came before it
                self._arrived.set()
                break
            events += news
        return events


@dataclass(eq=False)
class _Entry:
    """A model on offer. users: blocks that hold it now. busy: it is being loaded or unloaded."""

    name: str
    source: str
    folder: Path | None = None
    state: ModelState = "unloaded"
    llm: LLM | None = None
    lane: Scheduler | None = None
    loading: asyncio.Task[None] | None = None
    users: int = 0
    used: float = 0.0  # when it was last let go
    info: ModelInfo | None = None
    failure: str | None = None
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights' files."""
        if self.folder is None:
            return 0
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


class Service:
    """models: name -> what to load: a short name, repo id or folder. The first is the default."""

    def __init__(self, models: Mapping[str, str], settings: ServiceSettings | None = None) -> None:
        self.settings = settings or ServiceSettings()
        self._entries = {name: _Entry(name, source) for name, source in models.items()}
        self._default = next(iter(models))
        self._state: ServiceState = "loading"
        self._reason: str | None = None
        self._engine: Engine | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="mlx-qwen3-loader")
        self._watch: asyncio.Task[None] | None = None
        self._room = self.settings.model_memory or 0

    def models(self) -> list[ModelInfo]:
        """Every model on offer, in the order they were given."""
        return [_info(entry) for entry in self._entries.values()]

    def status(self) -> ServiceState:
        """Whether replies can be had; `reason` says more."""
        if self._state == "ready" and self._engine is not None and self._engine.failure:
            return "failed"
        return self._state

    @property
    def reason(self) -> str | None:
        """Why the status is "failed", in a line."""
        return self._reason or (self._engine.failure if self._engine else None)

    @property
    def fatal(self) -> bool:
        """Whether nothing but a new process will help."""
        return self._engine is not None and self._engine.given_up

    def statistics(self) -> Statistics:
        """What the engine does now, and did so far."""
        return Statistics() if self._engine is None else self._engine.statistics()

    async def start(self) -> None:
        """Find every model's folder (downloading what is not here), and load the default one.

        Raises ModelNotFoundError, CheckpointError.
        """
        try:
            for entry in self._entries.values():
                entry.folder = await self._on_loader(partial(resolve, entry.source))
            self._room = self._room or int(Device.current().memory_limit * (1 - MARGIN))
            self._engine = Engine(self.settings.engine)
            self._state = "ready"
            async with self.use(self._default):
                pass
        except Exception as exc:
            self._state, self._reason = "failed", str(exc)
            raise
        if self.settings.idle_unload is not None:
            self._watch = asyncio.create_task(self._unload_idle(self.settings.idle_unload))

    async def close(self, deadline: float = 30.0) -> None:
        """Refuse new work, let running replies finish for so many seconds, then end them."""
        self._state = "stopping"
        end = time.monotonic() + deadline
        while any(entry.users for entry in self._entries.values()) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if self._watch is not None:
            self._watch.cancel()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
        self._loader.shutdown(wait=False)

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[ServedModel]:
        """A loaded model, which stays loaded until the block is left. None: the default.

        Raises ModelNotFoundError, CheckpointError, BusyError when nothing can make room for it,
        EngineError while the service stops.
        """
        entry = self._entry(name)
        entry.users += 1
        try:
            if entry.llm is None:
                await self._load(entry)
            assert entry.llm is not None  # that is what loading does
            assert entry.lane is not None
            assert self._engine is not None
            yield ServedModel(entry.name, entry.llm, self._engine, entry.lane)
        finally:
            entry.users -= 1
            entry.used = time.monotonic()

    def _entry(self, name: str | None) -> _Entry:
        if self._state == "stopping":
            raise EngineError("the server is shutting down")
        if self._engine is None:
            raise EngineError("the server is still starting")
        entry = self._entries.get(self._default if name is None else name)
        if entry is None:
            offered = ", ".join(self._entries)
            raise ModelNotFoundError(f"no model {name!r} here; on offer: {offered}")
        return entry

    async def _load(self, entry: _Entry) -> None:
        """Load a model once, whoever asks, and however many; who asks may go meanwhile."""
        if entry.loading is None or entry.loading.done():
            entry.loading = asyncio.create_task(self._load_now(entry))
        await asyncio.shield(entry.loading)

    async def _load_now(self, entry: _Entry) -> None:
        async with entry.busy:
            await self._make_room(entry)
            entry.state, entry.failure = "loading", None
            try:
                await self._attach(entry)
            except Exception as exc:
                entry.state, entry.failure = "failed", str(exc)
                raise
            entry.state = "loaded"

    async def _attach(self, entry: _Entry) -> None:
        assert self._engine is not None
        settings = self.settings
        llm = await self._on_loader(
            partial(
                load,
                entry.folder or entry.source,
                dtype=settings.dtype,
                prefix_cache=settings.prefix_cache,
                # What is larger than all there is for models has its experts streamed.
                memory_budget=self._room if entry.weight_bytes > self._room else None,
            )
        )
        parts = ModelParts(
            llm.model, llm.tokenizer, llm.eos_ids, llm.prefix_store, llm.load_seconds
        )
        entry.lane = self._engine.attach(parts)
        entry.llm = llm
        entry.info = ModelInfo(entry.name, "loaded", llm.mode, llm.context_length)

    async def _make_room(self, entry: _Entry) -> None:
        """Unload what is least recently used until this model fits; alone it always may try."""
        while True:
            others = (one for one in self._entries.values() if one is not entry)
            loaded = [one for one in others if one.llm is not None or one.state == "loading"]
            held = sum(min(one.weight_bytes, self._room) for one in loaded)
            if not loaded or held + entry.weight_bytes <= self._room:
                return
            idle = [one for one in loaded if one.llm is not None and not one.users]
            if not idle:
                names = ", ".join(one.name for one in loaded)
                raise BusyError(
                    f"no memory for {entry.name} while {names} are in use; ask again later",
                    retry_after=_LOADING_AGAIN,
                )
            await self._unload(min(idle, key=lambda one: one.used))

    async def _unload(self, entry: _Entry) -> None:
        async with entry.busy:
            lane = entry.lane
            if lane is None or self._engine is None or entry.users:  # asked for meanwhile
                return
            entry.lane, entry.llm, entry.state = None, None, "unloaded"
            await asyncio.to_thread(self._engine.detach, lane)
            del lane
            gc.collect()
            self._engine.trim()
        _log.info("unloaded %s", entry.name)

    async def _unload_idle(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(min(seconds / 4, 5.0))
            for entry in self._entries.values():
                unused = entry.llm is not None and not entry.users
                if unused and time.monotonic() - entry.used >= seconds:
                    await self._unload(entry)

    async def _on_loader(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._loader, function)


def _info(entry: _Entry) -> ModelInfo:
    known = entry.info or ModelInfo(entry.name, entry.state)
    return ModelInfo(entry.name, entry.state, known.mode, known.context_length, entry.failure)
