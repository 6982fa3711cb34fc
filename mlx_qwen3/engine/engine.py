"""One thread that owns the models: all steps of all requests are made on it.

    engine = Engine(EngineSettings())
    lane = engine.attach(parts)                      # a model; its requests share steps
    ticket = engine.submit(lane, request, deliver)   # from any thread
    ticket.cancel()                                  # gone by the next step
    engine.detach(lane)
    engine.close()

A reply that fails ends with its error, and the others go on. When the thread itself fails, every
reply in the making ends with an EngineError and a new thread takes over; one that keeps failing is
not started again, and `given_up` says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen3.device import MARGIN, Device
from mlx_qwen3.engine import heap
from mlx_qwen3.engine.job import Deliver, Job
from mlx_qwen3.engine.kv import KvBudget
from mlx_qwen3.engine.prefix_store import PrefixStore
from mlx_qwen3.engine.scheduler import ModelParts, Scheduler
from mlx_qwen3.engine.settings import EngineSettings
from mlx_qwen3.engine.statistics import Counters, Statistics
from mlx_qwen3.errors import EngineError
from mlx_qwen3.generation.request import Request
from mlx_qwen3.model.experts import ExpertTraffic
from mlx_qwen3.model.policy import BatchPolicy
from mlx_qwen3.text.folder import one_line

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0  # after which memory goes back; sooner, the next request would ask for it again
_RESTARTS, _WITHIN = 3, 60.0  # so many in so many seconds, and there is something else wrong


@dataclass(frozen=True)
class Ticket:
    """A reply in the making."""

    _job: Job
    _wake: Callable[[], None]

    def cancel(self) -> None:
        """Stop the work; nothing more is delivered from the next step on. Ended already: no-op."""
        self._job.cancelled = True
        self._wake()


class Engine:
    """Runs requests of any number of models. All methods may be called from any thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._lanes: list[Scheduler] = []
        self._gone = Counters()  # of models that were unloaded
        self._orders: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._restarted: list[float] = []
        self._beat = time.monotonic()
        self._failure: str | None = None
        self._closing = False
        self._thread = self._start()

    @property
    def failure(self) -> str | None:
        """Why no reply can be made at the moment, in a line; None while all is well."""
        if self._failure is not None:
            return self._failure
        stalled = time.monotonic() - self._beat
        if self._busy and stalled > self._settings.stall_seconds:
            return f"the device has not finished a step for {stalled:.0f} s"
        return None

    @property
    def given_up(self) -> bool:
        """Whether the thread failed too often to be started again."""
        return self._failure is not None and not self._thread.is_alive()

    @property
    def restarts(self) -> int:
        """How often a new thread took over."""
        return len(self._restarted)

    def attach(self, parts: ModelParts) -> Scheduler:
        """Let requests for a model in. Its weights must have been evaluated."""
        device = Device.current()
        total = self._settings.kv_bytes or _kv_bytes(device, parts)
        budget = KvBudget(parts.model, total)
        lane = Scheduler(parts, self._settings, BatchPolicy.for_device(device), budget)
        with self._changed:
            self._lanes = [*self._lanes, lane]
        return lane

    def detach(self, lane: Scheduler) -> None:
        """End a model's requests and let go of it; waits for the step in flight."""
        done = threading.Event()

        def leave() -> None:
            with self._changed:
                self._lanes = [one for one in self._lanes if one is not lane]
            lane.close()
            self._gone = self._gone + lane.counters
            done.set()

        self._order(leave)
        while not done.wait(1.0) and self._thread.is_alive():
            pass

    def submit(self, lane: Scheduler, request: Request, deliver: Deliver) -> Ticket:
        """Have a reply made.

        Raises BusyError, ContextOverflowError (see Scheduler.check), EngineError when no reply
        can be made any more.
        """
        with self._changed:  # whoever ends jobs from here on ends this one, too
            failure = "the engine was closed" if self._closing else self._failure
            if failure is None and lane not in self._lanes:
                failure = "the model was unloaded"
            if failure is not None:
                raise EngineError(failure)
            job = Job(lane.check(request), deliver)
            lane.add(job)
            self._changed.notify_all()
        return Ticket(job, self._wake)

    def statistics(self) -> Statistics:
        """What goes on, over all models."""
        lanes, total = self._lanes, self._gone
        for lane in lanes:
            total = total + lane.counters
        experts = sum((lane.expert_traffic for lane in lanes), ExpertTraffic())
        return Statistics(
            waiting=sum(lane.queued for lane in lanes),
            running=sum(len(lane.running) for lane in lanes),
            kv_bytes=sum(lane.kv_bytes for lane in lanes),
            kv_budget=sum(lane.budget.total for lane in lanes),
            store_bytes=sum(lane.store.nbytes for lane in lanes if lane.store is not None),
            restarts=self.restarts,
            expert_lookups=experts.lookups,
            expert_misses=experts.misses,
            expert_bytes_read=experts.bytes_read,
            **vars(total),
        )

    def trim(self) -> None:
        """Give memory that nothing holds any more back to the system."""
        mx.clear_cache()
        heap.release()

    def close(self) -> None:
        """End all replies and the thread; waits for the step in flight."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def _busy(self) -> bool:
        return any(lane.busy for lane in self._lanes)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="mlx-qwen3-engine", daemon=True)
        thread.start()
        return thread

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._wake()

    def _run(self) -> None:
        try:
            while self._wait():
                self._round()
            self._end(EngineError("the server is shutting down"))
        except BaseException as exc:  # noqa: BLE001 - a thread that ends in silence is a hang
            self._crashed(exc)

    def _wait(self) -> bool:
        """Wait for work; False when there will be none."""
        with self._changed:
            self._beat = time.monotonic()
            patience: float | None = _IDLE_SECONDS
            while not (self._closing or self._orders or self._busy):
                if not self._changed.wait(patience):
                    self.trim()
                    patience = None
                self._beat = time.monotonic()
            return not self._closing

    def _round(self) -> None:
        while self._orders:
            self._orders.popleft()()
        for lane in self._lanes:
            if lane.busy:
                lane.step()

    def _end(self, error: Exception) -> None:
        for lane in self._lanes:
            lane.fail_all(error)

    def _crashed(self, exc: BaseException) -> None:
        _log.error("the engine failed", exc_info=exc)
        with self._changed:
            self._failure = f"the engine failed: {one_line(exc)}"
        try:
            self._end(EngineError(self._failure))
        finally:
            now = time.monotonic()
            self._restarted = [*self._restarted, now]
            recent = [one for one in self._restarted if now - one < _WITHIN]
            if len(recent) <= _RESTARTS and not self._closing:
                self._thread = self._start()
                self._failure = None


def _kv_bytes(device: Device, parts: ModelParts) -> int:
    """What is left for keys and values when weights and the store have theirs."""
    from mlx_qwen3.model.linear import nbytes

    limit = int(device.memory_limit * (1 - MARGIN))
    held = nbytes(parts.model) if device.recommended_working_set else 0
    store = parts.store.budget if isinstance(parts.store, PrefixStore) else 0
    return max(limit - held - store, limit // 8)
