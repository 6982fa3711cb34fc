"""Much of everything at once against a served process, and what is left of it in the end.

Two dozen clients send requests of every kind: good ones, malformed ones, some that are abandoned
in the middle of a stream, some whose clients have no patience. Good ones are asked alone first;
in company they must be answered the same.

Memory is that of the idle process, compared with what it was once the questions had been asked
alone, whole and streamed, and a first hundred requests of the same mixture had been sent: until
then the cache for prompts fills up to its bound, and the libraries make theirs.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.mixture import Question, mistake, questions
from tests.server.outcomes import STREAMED, WHOLE, Outcome, check_refusal, frames
from tests.server.running import PATIENCE, Started, started

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("MLX_QWEN3_SOAK_REQUESTS", "1000"))
WARM_UP = 100
CLIENTS = 24
DIFFERENT = 60  # questions
GROWTH = 0.05
SEED = int(os.environ.get("MLX_QWEN3_SOAK_SEED", "0"))

IDLE = 3.0  # seconds, in which a server that has nothing to do gives memory back

# Questions, and what their answers come to when nobody else asks: whole, and streamed. They are
# the same but for a call that was cut off, which a stream has begun when that turns out.
Known = list[tuple[Question, dict[str, Outcome]]]
# Sends one request, and raises AssertionError for what is wrong with the answer.
Send = Callable[[httpx.AsyncClient, random.Random, Known], Any]


@asynccontextmanager
async def client_of(server: Started) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"x-api-key": server.said["key"]}
    async with httpx.AsyncClient(
        base_url=server.said["url"], headers=headers, timeout=600, trust_env=False
    ) as client:
        yield client


async def whole(client: httpx.AsyncClient, question: Question) -> Outcome:
    answer = await client.post(question.path, json=question.body)
    assert answer.status_code == 200, answer.text
    return WHOLE[question.path](answer.json())


async def streamed(client: httpx.AsyncClient, question: Question) -> Outcome:
    answer = await client.post(question.path, json=question.streamed())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return STREAMED[question.path](frames(answer.content))


HOW = {"whole": whole, "streamed": streamed}

# --- what is sent


async def same(client: httpx.AsyncClient, rng: random.Random, known: Known, *, how: str) -> None:
    question, alone = rng.choice(known)
    found = await HOW[how](client, question)
    assert found == alone[how], f"{question}\nin company: {found}\nalone: {alone[how]}"


async def refused(client: httpx.AsyncClient, rng: random.Random, known: Known) -> None:
    wrong = mistake(rng, rng.choice(known)[0])
    headers = {"Content-Type": wrong.media}
    answer = await client.request(wrong.method, wrong.path, content=wrong.content, headers=headers)
    check_refusal(wrong.path, answer.status_code, answer.json())


async def abandoned(client: httpx.AsyncClient, rng: random.Random, known: Known) -> None:
    """Closed after a few lines."""
    question = rng.choice(known)[0]
    lines = rng.randrange(1, 30)
    async with client.stream("POST", question.path, json=question.streamed()) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_lines():
            lines -= 1
            if not lines:
                return


async def impatient(client: httpx.AsyncClient, rng: random.Random, known: Known) -> None:
    """Closed before there can be an answer, or soon after; what is answered by then is right."""
    client.timeout = httpx.Timeout(rng.choice([0.01, 0.1, 0.5]))
    try:
        await same(client, rng, known, how=rng.choice(list(HOW)))
    except httpx.TimeoutException:
        pass
    finally:
        client.timeout = httpx.Timeout(600)


async def looked_up(client: httpx.AsyncClient, rng: random.Random, known: Known) -> None:
    path = rng.choice(
        ["/health", "/metrics", "/v1/models", "/v1/models/demo", "/", "/openapi.json"]
    )
    assert (await client.get(path)).status_code == 200


SENDS: dict[str, tuple[int, Send]] = {
    "whole": (30, partial(same, how="whole")),
    "streamed": (36, partial(same, how="streamed")),
    "malformed": (14, refused),
    "abandoned": (12, abandoned),
    "impatient": (4, impatient),
    "looked up": (4, looked_up),
}


@dataclass
class Soak:
    """Some requests from all clients. wrong: what was wrong, and with which request."""

    known: Known
    wrong: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    async def run(self, server: Started, numbers: range) -> None:
        """Send these requests; what each is depends on its number alone."""
        left = iter(numbers)
        await asyncio.gather(*(self._client(server, left) for _ in range(CLIENTS)))

    async def _client(self, server: Started, left: Iterator[int]) -> None:
        async with client_of(server) as client:
            for number in left:
                await self._send(client, number)

    async def _send(self, client: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(f"{SEED} {number}")
        shares = [share for share, _ in SENDS.values()]
        [name] = rng.choices(list(SENDS), shares)
        self.sent[name] += 1
        try:
            await SENDS[name][1](client, rng, self.known)
        except Exception as exc:  # noqa: BLE001 - all are reported, not the first alone
            self.wrong.append(f"{name} {number}: {type(exc).__name__}: {exc}")


def metrics(server: Started) -> dict[str, float]:
    """Figures without labels."""
    with server.client() as client:
        text = client.get("/metrics").text
    return {
        sample.name.removeprefix("mlx_qwen3_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def settled(server: Started) -> dict[str, float]:
    """The figures once nothing runs any more, and the server knows it."""
    deadline = time.monotonic() + PATIENCE
    while (found := metrics(server))["running"] or found["queue_depth"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    time.sleep(IDLE)
    return metrics(server)


async def alone(server: Started) -> Known:
    """Every question and its answer when nobody else asks anything."""
    async with client_of(server) as client:
        asked = questions(random.Random(SEED), DIFFERENT)
        return [(one, {name: await ask(client, one) for name, ask in HOW.items()}) for one in asked]


def test_a_thousand_requests_of_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with started("--model", "demo", "--log-level", "warning") as server:
        soak = Soak(asyncio.run(alone(server)))
        asyncio.run(soak.run(server, range(WARM_UP)))
        before, start = settled(server), time.monotonic()
        asyncio.run(soak.run(server, range(WARM_UP, WARM_UP + REQUESTS)))
        seconds, after = time.monotonic() - start, settled(server)
        with server.client() as client:
            health = client.get("/health")
        server.process.terminate()
        assert server.process.stderr is not None
        logged = server.process.stderr.read()
        assert server.end() == 0
    grown = after["process_resident_memory_bytes"] / before["process_resident_memory_bytes"] - 1
    with capsys.disabled():
        print(f"\n{dict(soak.sent)}, {REQUESTS} of them in {seconds:.0f} s; memory {grown:+.1%}")
    assert soak.wrong == []
    assert (health.status_code, health.json()["status"]) == (200, "ready")
    assert logged == ""
    assert after["kv_bytes"] == 0
    assert (after["engine_restarts_total"], after["reply_failures_total"]) == (0, 0)
    assert grown <= GROWTH
