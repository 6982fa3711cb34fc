"""Models by name: loaded when asked for, let go when idle or in the way, one engine for all."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import BusyError, CheckpointError, EngineError, ModelNotFoundError
from mlx_qwen3.demo import demo_folder
from mlx_qwen3.engine.settings import EngineSettings
from mlx_qwen3.generation.output import Event
from mlx_qwen3.service import ServedModel, Service, ServiceSettings, _Mailbox

SIZE = sum(file.stat().st_size for file in demo_folder().glob("*.safetensors"))


@asynccontextmanager
async def serving(models: dict[str, str], **settings: Any) -> AsyncIterator[Service]:
    service = Service(models, ServiceSettings(prefix_cache=False, **settings))
    await service.start()
    try:
        yield service
    finally:
        await service.close(deadline=0)


async def ask(model: ServedModel, prompt: str, **options: Any) -> str:
    request = model.llm.request(prompt, temperature=0.0, **options)
    async with aclosing(model.stream(request)) as events:
        return "".join([event.text async for event in events if event.kind == "answer"])


async def ask_by_name(service: Service, name: str | None, prompt: str) -> str:
    async with service.use(name) as model:
        return await ask(model, prompt)


def states(service: Service) -> dict[str, str]:
    return {model.name: model.state for model in service.models()}


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to this"
        await asyncio.sleep(0.01)


def test_models_are_loaded_when_asked_for() -> None:
    async def run() -> None:
        async with serving({"one": "demo", "two": "demo-moe"}) as service:
            assert service.status() == "ready"
            assert states(service) == {"one": "loaded", "two": "unloaded"}
            answers = await asyncio.gather(
                ask_by_name(service, None, "What is 27 + 58?"),
                ask_by_name(service, "two", "What is 40 + 2?"),
                ask_by_name(service, "two", "What is 5 + 5?"),
            )
            assert ["85" in answers[0], "42" in answers[1], "10" in answers[2]] == [True] * 3
            assert states(service) == {"one": "loaded", "two": "loaded"}
            assert all(model.mode and model.context_length for model in service.models())
            with pytest.raises(ModelNotFoundError, match="no model 'three' here; on offer: one"):
                await ask_by_name(service, "three", "Hello")

    asyncio.run(run())


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    shutil.copytree(demo_folder(), tmp_path / "copy")

    async def run() -> None:
        models = {"one": "demo", "two": str(tmp_path / "copy"), "three": "demo"}
        async with serving(models, model_memory=SIZE * 5 // 2) as service:
            await ask_by_name(service, "two", "Hi")
            await ask_by_name(service, "one", "Hi")
            await ask_by_name(service, "three", "Hi")
            assert states(service) == {"one": "loaded", "two": "unloaded", "three": "loaded"}
            async with service.use("one"), service.use("three"):
                with pytest.raises(BusyError, match="no memory for two while one, three") as busy:
                    await ask_by_name(service, "two", "Hi")
                assert busy.value.retry_after > 0
            assert "85" in await ask_by_name(service, "two", "What is 27 + 58?")
            assert list(states(service).values()).count("loaded") == 2
            assert service.statistics().failures == 0

    asyncio.run(run())


def test_a_mixture_of_experts_beyond_the_memory_is_streamed() -> None:
    size = sum(file.stat().st_size for file in demo_folder("demo-moe").glob("*.safetensors"))

    async def run() -> None:
        async with serving({"moe": "demo-moe"}, model_memory=int(size * 0.75)) as service:
            answers = await asyncio.gather(
                ask_by_name(service, None, "What is 40 + 2?"),
                ask_by_name(service, None, "What is 5 + 5?"),
            )
            assert ["42" in answers[0], "10" in answers[1]] == [True, True]
            statistics = service.statistics()
            assert 0 < statistics.expert_misses < statistics.expert_lookups
            assert statistics.expert_bytes_read > 0

    asyncio.run(run())


def test_idle_models_go_and_come_back() -> None:
    async def run() -> None:
        async with serving({"demo": "demo"}, idle_unload=0.2) as service:
            async with service.use() as model:
                await asyncio.sleep(0.6)  # held, if not used
                assert "85" in await ask(model, "What is 27 + 58?")
            await until(lambda: states(service) == {"demo": "unloaded"})
            await until(lambda: service.statistics().kv_budget == 0)
            assert "42" in await ask_by_name(service, None, "What is 40 + 2?")

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_harms_no_other(tmp_path: Path) -> None:
    shutil.copytree(demo_folder(), tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{}")

    async def run() -> None:
        async with serving({"good": "demo", "bad": str(tmp_path / "broken")}) as service:
            for _ in range(2):  # tried again each time: it may have been mended
                with pytest.raises(CheckpointError, match=r"config\.json"):
                    await ask_by_name(service, "bad", "Hi")
            assert states(service)["bad"] == "failed"
            assert "config.json" in str(service.models()[1].failure)
            assert "85" in await ask_by_name(service, "good", "What is 27 + 58?")
            shutil.copy(demo_folder() / "config.json", tmp_path / "broken")
            assert "42" in await ask_by_name(service, "bad", "What is 40 + 2?")

    asyncio.run(run())


def test_a_default_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        service = Service({"bad": str(tmp_path)})
        with pytest.raises(CheckpointError):
            await service.start()
        assert service.status() == "failed"
        assert service.reason
        await service.close()

    asyncio.run(run())


def test_who_leaves_while_a_model_loads_spoils_it_for_nobody() -> None:
    async def run() -> None:
        async with serving({"one": "demo", "two": "demo-moe"}) as service:
            first = asyncio.create_task(ask_by_name(service, "two", "What is 5 + 5?"))
            second = asyncio.create_task(ask_by_name(service, "two", "What is 40 + 2?"))
            await asyncio.sleep(0)
            first.cancel()
            assert "42" in await second

    asyncio.run(run())


def endless(model: ServedModel) -> Any:
    banned = dict.fromkeys(model.llm.eos_ids, -1e9)
    return model.stream(
        model.llm.request("Count.", raw=True, max_tokens=3000, seed=1, logit_bias=banned)
    )


def test_leaving_a_stream_frees_its_place() -> None:
    async def run() -> None:
        async with serving({"demo": "demo"}) as service, service.use() as model:
            async with aclosing(endless(model)) as events:
                async for _ in events:
                    break
            await until(lambda: service.statistics().running == 0)

            async def watch() -> None:
                async with aclosing(endless(model)) as watched:
                    async for _ in watched:
                        pass

            task = asyncio.create_task(watch())
            await until(lambda: service.statistics().running == 1)
            task.cancel()
            await until(lambda: service.statistics().running == 0)
            assert service.statistics().cancelled == 2

    asyncio.run(run())


def test_closing_lets_replies_finish_within_the_deadline() -> None:
    async def run() -> None:
        service = Service({"demo": "demo"}, ServiceSettings(prefix_cache=False))
        await service.start()
        asked = asyncio.create_task(ask_by_name(service, None, "What is 27 + 58?"))
        await until(lambda: service.statistics().running == 1)
        closing = asyncio.create_task(service.close(deadline=60))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="shutting down"):
            await ask_by_name(service, None, "Hello")
        assert "85" in await asked
        await closing

    asyncio.run(run())


def test_closing_ends_replies_at_the_deadline() -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            service = Service({"demo": "demo"}, ServiceSettings(prefix_cache=False))
            await service.start()
            model = await stack.enter_async_context(service.use())
            events = await stack.enter_async_context(aclosing(endless(model)))
            await anext(events)
            await service.close(deadline=0.1)
            with pytest.raises(EngineError, match="shutting down"):
                async for _ in events:
                    pass

    asyncio.run(run())


def test_events_that_come_while_others_are_taken_are_not_left_lying() -> None:
    """A wake-up lost between a look at the box and what is put into it left a stream hanging."""
    count = 30_000

    async def run() -> None:
        mailbox = _Mailbox(asyncio.get_running_loop())

        def fill() -> None:
            for number in range(count):
                mailbox.put([Event("answer", str(number))])

        filling = asyncio.create_task(asyncio.to_thread(fill))
        taken: list[Event] = []
        while len(taken) < count:
            taken += await asyncio.wait_for(mailbox.take(), 20)
        await filling
        assert [event.text for event in taken] == [str(number) for number in range(count)]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asyncio.run(run())
    finally:
        sys.setswitchinterval(before)


def test_refused_where_too_many_wait() -> None:
    async def run() -> None:
        engine = EngineSettings(max_running=1, max_waiting=0)
        async with serving({"demo": "demo"}, engine=engine) as service, service.use() as model:
            async with aclosing(endless(model)) as events:
                await anext(events)
                with pytest.raises(BusyError):
                    await ask(model, "Hello")
            await until(lambda: service.statistics().running == 0)
            assert "85" in await ask(model, "What is 27 + 58?")

    asyncio.run(run())
