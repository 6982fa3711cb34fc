"""What the engine counts."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Counters:
    """Of one model, since it was loaded. Written on the engine's thread, read on any.

    prompt_tokens: of requests that began; cached_tokens: how many of them were not read again.
    failures: replies that ended with an error. preemptions: caches given up for others' growth.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    finished: int = 0
    cancelled: int = 0
    failures: int = 0
    preemptions: int = 0
    recent_seconds: float = 1.0  # from request to end, a running mean

    def __add__(self, other: Counters) -> Counters:
        """Both together; recent_seconds of the first."""
        names = [one.name for one in fields(Counters) if one.name != "recent_seconds"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Counters(**sums, recent_seconds=self.recent_seconds)

    def finish(self, seconds: float) -> None:
        """A reply came to its end, so many seconds after it was asked for."""
        self.finished += 1
        self.recent_seconds += (seconds - self.recent_seconds) / min(self.finished, 16)

    def seconds_per_reply(self) -> float:
        """How long a reply took recently; at least 1."""
        return max(1.0, self.recent_seconds)


@dataclass
class Statistics(Counters):
    """What goes on in the engine now, and what it counted so far, over all models.

    kv_bytes, kv_budget: of running sequences. store_bytes: of caches that lie ready.
    restarts: of the engine's thread. expert_*: of streamed experts, see ExpertTraffic; of models
    that are loaded.
    """

    waiting: int = 0
    running: int = 0
    kv_bytes: int = 0
    kv_budget: int = 0
    store_bytes: int = 0
    restarts: int = 0
    expert_lookups: int = 0
    expert_misses: int = 0
    expert_bytes_read: int = 0
