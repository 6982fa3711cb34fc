"""Which sequences of a model run in the next step, and what becomes of them.

Each round lets waiting requests in while there is room, reads a chunk of one prompt, and makes one
token for every sequence whose prompt is read. Prompts take turns, so a short one is not kept
waiting by a long one; a chunk is as long as the settings let others' next token wait.

Room is memory for keys and values. A sequence is let in when its prompt fits, not the longest reply
it may give; when growing replies have filled the budget, the youngest gives its cache back and
waits in front of the queue. Its tokens so far are read again later (most of them from the store),
the one it drew last is kept, and so its reply is the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mlx_qwen3.engine.batch import Batch
from mlx_qwen3.engine.chunks import ChunkLength
from mlx_qwen3.engine.job import Job
from mlx_qwen3.engine.kv import KvBudget
from mlx_qwen3.engine.prefix_store import PrefixStore
from mlx_qwen3.engine.settings import EngineSettings
from mlx_qwen3.engine.slot import Slot
from mlx_qwen3.engine.statistics import Counters
from mlx_qwen3.errors import BusyError, ContextOverflowError, EngineError, Qwen3Error
from mlx_qwen3.generation.caches import CacheStore
from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.reply import Reply
from mlx_qwen3.generation.request import Request
from mlx_qwen3.generation.sampling import Sampler
from mlx_qwen3.model.cache import BLOCK, Cache
from mlx_qwen3.model.experts import ExpertTraffic
from mlx_qwen3.model.policy import BatchPolicy
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.text.folder import one_line
from mlx_qwen3.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_SHARED_FROM = 32  # tokens that a prompt may wait for another to read


@dataclass(frozen=True)
class ModelParts:
    """What replies are made of. store: where caches go between replies; None: nowhere."""

    model: Transformer
    tokenizer: Tokenizer
    eos_ids: Collection[int]
    store: CacheStore | None = None
    load_seconds: float = 0.0


class Scheduler:
    """The requests of one model. Lives on the engine's thread, `check` and `add` aside.

    waiting: in the order they will run. running: in the order they came in.
    """

    def __init__(
        self, parts: ModelParts, settings: EngineSettings, policy: BatchPolicy, budget: KvBudget
    ) -> None:
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.counters = Counters()
        self.budget = budget
        self._parts = parts
        self._settings = settings
        self._batch = Batch(parts.model, policy)
        self._chunk = ChunkLength(settings.chunk_seconds)
        self._turn = 0
        self._incoming: deque[Job] = deque()  # from other threads

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._incoming or self.waiting or self.running)

    @property
    def queued(self) -> int:
        """Requests that do not run (yet, or for the moment)."""
        return len(self._incoming) + len(self.waiting)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the caches of running sequences."""
        return sum(job.slot.cache.nbytes for job in self.running if job.slot is not None)

    @property
    def store(self) -> PrefixStore | None:
        """Where caches lie between replies, if that is the engine's own."""
        store = self._parts.store
        return store if isinstance(store, PrefixStore) else None

    @property
    def expert_traffic(self) -> ExpertTraffic:
        """What the model's streamed experts took so far."""
        return self._parts.model.expert_traffic or ExpertTraffic()

    def check(self, request: Request) -> Request:
        """The request, as far as memory lets its reply grow; callable from any thread.

        Raises BusyError when too many wait already, ContextOverflowError for a prompt that
        would not fit into the memory for keys and values if it were alone.
        """
        if self.queued >= self._settings.max_waiting + self._free_places():
            raise BusyError(
                f"{self.queued} requests wait already, the most that may; ask again later",
                retry_after=self.counters.seconds_per_reply(),
            )
        prompt, most = len(request.prompt_ids), self.budget.most_tokens(request)
        if prompt + 1 > most:
            raise ContextOverflowError(
                f"the prompt's {prompt} tokens do not fit the memory for keys and values "
                f"({self.budget.total} bytes, {most} tokens); shorten it, or set kv_bits or "
                "max_kv_size"
            )
        return replace(request, max_tokens=min(request.max_tokens, most - prompt))

    def add(self, job: Job) -> None:
        """Let a job wait for its turn; callable from any thread."""
        self._incoming.append(job)

    def step(self) -> None:
        """One round."""
        self._take_in()
        self._drop_cancelled()
        self._make_room()
        self._admit()
        self._read_chunk()
        self._make_tokens()

    def fail_all(self, error: Exception) -> None:
        """End every job with this error."""
        self._take_in()
        for job in [*self.running, *self.waiting]:
            self._fail(job, error)
        self.running, self.waiting = [], deque()

    def close(self) -> None:
        """End every job, wait for the step in flight, and forget the caches that lie ready."""
        self.fail_all(EngineError("the model was unloaded"))
        self._batch.land()
        if self.store is not None:
            self.store.clear()

    def _take_in(self) -> None:
        while self._incoming:
            self.waiting.append(self._incoming.popleft())

    def _free_places(self) -> int:
        return max(0, self._settings.max_running - len(self.running))

    def _drop_cancelled(self) -> None:
        for job in [one for one in (*self.running, *self.waiting) if one.cancelled]:
            self.counters.cancelled += 1
            self._end(job)

    def _admit(self) -> None:
        for job in list(self.waiting):
            if not self._fits(job):
                return
            if not self._shares_unread(job):
                self.waiting.remove(job)
                self._start(job)

    def _fits(self, job: Job) -> bool:
        if not self.running:
            return True
        needed = self.budget.needed(job.request, job.tokens + BLOCK)
        within = self.kv_bytes + self._unread_bytes() + needed <= self.budget.total
        return within and len(self.running) < self._settings.max_running

    def _unread_bytes(self) -> int:
        """What prompts that are being read will take beyond what they have."""
        unread = [job for job in self.running if job.slot is not None and job.slot.pending]
        total = 0
        for job in unread:
            held = 0 if job.slot is None else job.slot.cache.nbytes
            total += max(0, self.budget.needed(job.request, job.tokens) - held)
        return total

    def _shares_unread(self, job: Job) -> bool:
        """Whether a prompt being read begins like this one: waiting spares reading it twice."""
        if job.started or self._parts.store is None:
            return False
        reading = (one for one in self.running if one.slot is not None and one.slot.pending)
        return any(
            job.common(other) - other.slot.offset > _SHARED_FROM
            for other in reading
            if other.slot is not None
        )

    def _start(self, job: Job) -> None:
        try:
            if job.reply is None or job.slot is None:
                self._begin(job)
            else:
                job.slot.move(job.reply.resume(), job.reply.token_ids)
        except Exception as exc:  # noqa: BLE001 - one job's, whatever it is
            self._fail(job, exc)
        else:
            self.running.append(job)

    def _begin(self, job: Job) -> None:
        def make_loop(cache: Cache, sampler: Sampler, constraint: Constraint | None) -> Slot:
            job.slot = Slot(cache, sampler, constraint, max_tokens=job.request.max_tokens)
            return job.slot

        parts = self._parts
        job.reply = Reply(
            parts.model,
            parts.tokenizer,
            job.request,
            parts.eos_ids,
            load_seconds=parts.load_seconds,
            store=parts.store,
            make_loop=make_loop,
        )
        job.reply.start()
        assert job.slot is not None  # start made the loop
        self.counters.prompt_tokens += len(job.request.prompt_ids)
        self.counters.cached_tokens += job.slot.offset

    def _make_room(self) -> None:
        """Have the youngest sequences wait while the others would outgrow the budget."""
        while len(self.running) > 1:
            growth = sum(job.slot.cache.growth for job in self.running if job.slot)
            if not growth or self.kv_bytes + growth <= self.budget.total:
                return
            job = max(self.running, key=lambda one: one.number)
            assert job.reply is not None  # it runs
            self.running.remove(job)
            job.reply.pause()
            self.waiting.appendleft(job)
            self.counters.preemptions += 1

    def _read_chunk(self) -> None:
        """Read on in the prompt whose turn it is."""
        reading = [job for job in self.running if job.slot is not None and job.slot.pending]
        if not reading:
            return
        job = min(reading, key=lambda one: (one.turn, one.number))
        self._turn += 1
        job.turn = self._turn
        assert job.slot is not None
        tokens = self._chunk.tokens(len(job.slot.pending), alone=len(self.running) == 1)
        start = time.perf_counter()
        try:
            self._batch.read(job.slot, tokens)
        except Exception as exc:  # noqa: BLE001 - memory that ran out is this prompt's
            self._fail(job, exc)
        else:
            self._chunk.took(tokens, time.perf_counter() - start)

    def _make_tokens(self) -> None:
        for job in list(self.running):  # a thought over budget goes on with words to be read
            if job.slot is not None and job.slot.ready and job.reply is not None:
                self._take(job, job.reply.end_thought())
        ready = {job.slot: job for job in self.running if job.slot is not None and job.slot.ready}
        if not ready:
            return
        self.counters.steps += 1
        try:
            failures = self._batch.step(list(ready))
        except Exception as exc:  # noqa: BLE001 - whoever's it is, their caches are in doubt
            _log.exception("a step of %d sequences failed", len(ready))
            for job in ready.values():
                self._fail(job, exc)
            return
        for slot, job in ready.items():
            if slot in failures:
                self._fail(job, failures[slot])
            else:
                self._step(job)

    def _step(self, job: Job) -> None:
        assert job.reply is not None
        try:
            events = job.reply.step()
        except Exception as exc:  # noqa: BLE001 - one job's, whatever it is
            self._fail(job, exc)
        else:
            self.counters.generated_tokens += 1
            self._take(job, events)

    def _take(self, job: Job, events: Sequence[Event] | None) -> None:
        """Hand events on, and end the job that is done."""
        assert job.reply is not None
        if events:
            job.send(events)
        if events is not None and job.reply.done:
            last = job.reply.end()
            self._end(job)
            self.counters.finish(time.perf_counter() - job.submitted)
            job.send(last)

    def _end(self, job: Job, *, failed: bool = False) -> None:
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        # A reply knows its job: what both hold would wait for Python's collector of cycles, which
        # does not know how much that is.
        reply, job.reply, job.slot = job.reply, None, None
        if reply is not None:
            reply.close(failed=failed)

    def _fail(self, job: Job, error: Exception) -> None:
        self.counters.failures += 1
        own = isinstance(error, Qwen3Error)
        if not own:
            _log.error("a reply failed: %s", one_line(error))
        try:
            self._end(job, failed=True)
        finally:
            # Its traceback would hold what ran beside it for as long as anybody holds the error.
            said = error if own else EngineError(f"the reply failed: {one_line(error)}")
            job.send(said.with_traceback(None))
