"""How many experts a budget has room for, from headers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3.bench.shapes import shape_config, stored_tensors
from mlx_qwen3.demo import demo_folder
from mlx_qwen3.device import Device
from mlx_qwen3.errors import DeviceError, OptionError
from mlx_qwen3.llm import LLM
from mlx_qwen3.model.checkpoint import Checkpoint, TensorInfo
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.linear import nbytes
from mlx_qwen3.model.residency import (
    ExpertPlan,
    Residency,
    WeightSizes,
    plan_experts,
    spare_bytes,
)
from mlx_qwen3.model.weights import load_model
from mlx_qwen3.releases import find

GB = 10**9


def release(name: str, bits: int = 4) -> tuple[ModelConfig, Checkpoint]:
    """A release's config and headers."""
    raw = shape_config(find(name).release)
    tensors = {
        one.name: TensorInfo(Path("model.safetensors"), one.dtype, one.shape, one.nbytes, 0)
        for one in stored_tensors(raw, bits)
    }
    return ModelConfig.from_dict(raw), Checkpoint(tensors)


def mac(memory: int) -> Device:
    """A Mac that recommends three quarters of its memory."""
    device = Device.current()
    limit = memory * 3 // 4
    return replace(
        device,
        backend="metal",
        memory_size=memory,
        available_memory=limit,
        recommended_working_set=limit,
    )


def planned(name: str, memory: int, **wanted: Any) -> ExpertPlan | None:
    config, checkpoint = release(name)
    return plan_experts(Residency(**wanted), config, checkpoint, mx.bfloat16, mac(memory))


def slots(plan: ExpertPlan | None) -> set[int]:
    assert plan is not None
    return set(plan.slots.values())


@pytest.mark.parametrize("name", ["demo-moe", "demo"])
def test_sizes_are_those_of_the_loaded_model(name: str) -> None:
    folder = demo_folder(name)
    model = load_model(folder)
    sizes = WeightSizes.of(Checkpoint.from_folder(folder), model.config, model.dtype)
    # A norm for each head instead of one for all, and nothing else.
    assert sizes.total <= nbytes(model) <= sizes.total * 1.01


def test_a_streamed_model_holds_what_was_planned() -> None:
    folder = demo_folder("demo-moe")
    model = load_model(folder, residency=Residency("streamed", memory_budget=4_000_000))
    assert model.expert_traffic is not None
    assert 3_400_000 < nbytes(model) <= 3_600_000


def test_the_30b_in_6_gb() -> None:
    config, checkpoint = release("30b-a3b")
    sizes = WeightSizes.of(checkpoint, config, mx.bfloat16)
    assert 17 * GB < sizes.total < 17.5 * GB
    plan = plan_experts(
        Residency(memory_budget=6 * GB), config, checkpoint, mx.bfloat16, mac(16 * GB)
    )
    assert plan is not None
    assert max(slots(plan)) - min(slots(plan)) <= 1
    held = sizes.others + sum(sizes.experts[name] * plan.slots[name] for name in plan.slots)
    assert 0.9 * 6 * GB - max(sizes.experts.values()) < held <= 0.9 * 6 * GB


@pytest.mark.parametrize(
    ("memory", "wanted", "streams"),
    [
        (64 * GB, {}, False),
        (64 * GB, {"experts": "streamed"}, False),  # everything fits
        (64 * GB, {"memory_budget": 30 * GB}, False),
        (64 * GB, {"memory_budget": 10 * GB}, True),
        (16 * GB, {}, True),  # it does not fit otherwise
        (16 * GB, {"experts": "streamed"}, True),
        (16 * GB, {"experts": "resident"}, False),  # as it was asked for
        (16 * GB, {"memory_budget": 30 * GB}, False),
    ],
)
def test_what_is_chosen(memory: int, wanted: dict[str, Any], streams: bool) -> None:
    assert (planned("30b-a3b", memory, **wanted) is not None) == streams


def test_what_a_device_can_spare_is_used() -> None:
    found = slots(planned("30b-a3b", 16 * GB, experts="streamed"))
    assert found == slots(planned("30b-a3b", 64 * GB, memory_budget=int(12 * GB * 0.85)))
    assert min(slots(planned("235b-a22b", 64 * GB))) > 8


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("30b-a3b", {"memory_budget": GB}, "leaves 900.0 MB .* with streamed experts; allow 2"),
        ("235b-a22b", {"memory_budget": 6 * GB}, "with streamed experts; allow"),
        (
            "30b-a3b",
            {"memory_budget": 6 * GB, "experts": "resident"},
            "with all weights in memory; allow 19",
        ),
        ("8b", {"memory_budget": 3 * GB}, "leaves 2.7 GB .* which take 4.7 GB with all"),
    ],
)
def test_a_budget_too_small(name: str, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        planned(name, 64 * GB, **wanted)


def test_the_budget_it_names_is_enough() -> None:
    with pytest.raises(DeviceError) as caught:
        planned("30b-a3b", 64 * GB, memory_budget=GB)
    named = str(caught.value).partition("allow ")[2].partition(" (")[0]
    found = slots(planned("30b-a3b", 64 * GB, memory_budget=int(float(named.split()[0]) * GB)))
    assert min(found) == 8


def test_what_the_work_takes_may_be_said() -> None:
    config, checkpoint = release("30b-a3b")
    wanted, device = Residency(memory_budget=8 * GB), mac(64 * GB)
    found = [
        plan_experts(wanted, config, checkpoint, mx.bfloat16, device, working=working)
        for working in (None, 8 * GB // 10, 2 * GB)
    ]
    assert found[0] == found[1]
    assert max(slots(found[2])) < min(slots(found[0]))
    with pytest.raises(DeviceError, match=r"allow 8.9 GB"):
        plan_experts(wanted, config, checkpoint, mx.bfloat16, device, working=7 * GB)


def test_dense_models_have_none_to_stream() -> None:
    assert planned("0.6b", 64 * GB) is None
    assert planned("8b", 64 * GB, memory_budget=6 * GB) is None
    with pytest.raises(OptionError, match="no experts to stream"):
        planned("0.6b", 64 * GB, experts="streamed")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"experts": "cached"}, "experts is 'cached'; expected one of resident, streamed"),
        ({"memory_budget": 0}, "memory_budget is 0; expected"),
        ({"memory_budget": 1.5}, "memory_budget is 1.5; expected"),
        ({"slots": True}, "slots is True; expected"),
    ],
)
def test_impossible_wishes(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Residency(**wanted)


def test_too_few_slots() -> None:
    with pytest.raises(OptionError, match="slots is 7; this model needs at least 8"):
        planned("30b-a3b", 64 * GB, slots=7)
    assert slots(planned("30b-a3b", 64 * GB, slots=8)) == {8}


def test_budgets_as_people_write_them() -> None:
    assert Residency.of("streamed", "6GB") == Residency("streamed", 6 * GB)
    assert Residency.of(None, 5) == Residency(None, 5)
    with pytest.raises(OptionError, match="'much' is no size"):
        Residency.of(None, "much")


def test_idle_caches_stay_within_the_budget() -> None:
    wanted = {"experts": "streamed", "memory_budget": 4_000_000}
    llm = LLM.from_folder(demo_folder("demo-moe"), prefix_cache=True, **wanted)
    store: Any = llm.prefix_store
    assert store._pool.budget == spare_bytes(Residency(**wanted), mac(16 * GB)) == 200_000
