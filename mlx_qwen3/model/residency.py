"""Whether a model's experts stay in memory or are streamed, and how many are in memory then.

Decided from headers alone, before anything is loaded: `plan_experts` may be called for a model
that is not going to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import mlx.core as mx

from mlx_qwen3.device import MARGIN, Device
from mlx_qwen3.errors import DeviceError, OptionError
from mlx_qwen3.model.checkpoint import Checkpoint, TensorInfo
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.sizes import parse_size

ExpertMode = Literal["resident", "streamed"]

# Of a budget, what weights leave to everything else.
_WORKING_SHARE = 0.1
_FLOATS = ("BF16", "F16", "F32")
_EXPERTS = (".mlp.experts.", ".mlp.switch_mlp.")


@dataclass(frozen=True)
class Residency:
    """What is wanted.

    experts: "resident", "streamed" (which is resident, too, where everything fits) or None:
    streamed where the model does not fit otherwise. memory_budget: bytes for weights, keys and
    values and activations together; None: what this device can spare. slots: experts of each
    layer in memory, whatever the budget. Raises OptionError for impossible values.
    """

    experts: ExpertMode | None = None
    memory_budget: int | None = None
    slots: int | None = None

    @classmethod
    def of(cls, experts: str | None, memory_budget: str | int | None) -> Residency:
        """From what a user says: a budget may be a size such as "6GB". Raises OptionError."""
        if isinstance(memory_budget, str):
            memory_budget = parse_size(memory_budget)
        return cls(cast("ExpertMode | None", experts), memory_budget)

    def __post_init__(self) -> None:
        if self.experts is not None and self.experts not in get_args(ExpertMode):
            modes = ", ".join(get_args(ExpertMode))
            raise OptionError(f"experts is {self.experts!r}; expected one of {modes}, or nothing")
        for name in ("memory_budget", "slots"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise OptionError(f"{name} is {value!r}; expected a whole number from 1 on")


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of a checkpoint in memory. experts: of one expert, by sparse layer."""

    others: int
    experts: Mapping[str, int]
    count: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: ModelConfig, dtype: mx.Dtype) -> WeightSizes:
        """dtype: of activations, to which everything unpacked is converted."""
        others, layers = 0, dict.fromkeys(_sparse_layers(config), 0)
        for name, info in checkpoint.tensors.items():
            size = bytes_in_memory(info, dtype)
            part = next((part for part in _EXPERTS if part in name), None)
            if part is None:
                others += size
            else:
                layer = f"model.{name.removeprefix('model.').partition(part)[0]}.mlp"
                layers[layer] = layers.get(layer, 0) + size
        count = config.num_experts
        return cls(others, {name: size // count for name, size in layers.items()}, count)

    @property
    def one_of_each(self) -> int:
        """Bytes of one expert in every layer."""
        return sum(self.experts.values())

    @property
    def total(self) -> int:
        """Everything in memory."""
        return self.others + self.one_of_each * self.count


@dataclass(frozen=True)
class ExpertPlan:
    """Streamed experts. slots: how many of each sparse layer are in memory at once."""

    slots: Mapping[str, int]


def plan_experts(
    wanted: Residency,
    config: ModelConfig,
    checkpoint: Checkpoint,
    dtype: mx.Dtype,
    device: Device,
    *,
    working: int | None = None,
) -> ExpertPlan | None:
    """How experts are held; None: all in memory, as those of a dense model's layers are.

    working: bytes of the budget for keys and values, activations and the interpreter itself;
    None: a tenth of it.
    Raises DeviceError when the budget is too small for the model, however it is held, and
    OptionError when experts of a dense model are to be streamed.
    """
    if not config.num_experts:
        if wanted.experts == "streamed" or wanted.slots is not None:
            raise OptionError("this model has no experts to stream; leave experts out")
        if wanted.memory_budget is None:
            return None  # what does not fit is for the device to say
    sizes = WeightSizes.of(checkpoint, config, dtype)
    if wanted.slots is not None:
        return _uniform(wanted.slots, sizes, config)
    budget = _Budget.of(wanted, device, working)
    if _all_fit(sizes, wanted, budget, device):
        return None
    _refuse_too_small(sizes, wanted, budget, config)
    return _within(budget.weights, sizes)


def spare_bytes(wanted: Residency, device: Device) -> int:
    """Of a budget, what caches may take that no reply is using: half of what weights leave."""
    return int(_Budget.of(wanted, device).total * _WORKING_SHARE / 2)


@dataclass(frozen=True)
class _Budget:
    """Bytes. working: what weights leave to everything else; None: their usual share."""

    total: int
    working: int | None = None

    @classmethod
    def of(cls, wanted: Residency, device: Device, working: int | None = None) -> _Budget:
        """What is wanted, or what the device can spare."""
        return cls(wanted.memory_budget or int(device.memory_limit * (1 - MARGIN)), working)

    @property
    def weights(self) -> int:
        """What they may take."""
        share = int(self.total * (1 - _WORKING_SHARE))
        return share if self.working is None else self.total - self.working

    def total_for(self, weights: int) -> float:
        """A budget that these fit."""
        share = weights / (1 - _WORKING_SHARE)
        return share if self.working is None else weights + self.working


def _all_fit(sizes: WeightSizes, wanted: Residency, budget: _Budget, device: Device) -> bool:
    """Whether all weights are to be in memory. Without a budget that may be asked for, too."""
    if wanted.memory_budget is not None or wanted.experts == "streamed":
        return sizes.total <= budget.weights
    return wanted.experts == "resident" or device.fits(sizes.total).fits != "no"


def _refuse_too_small(
    sizes: WeightSizes, wanted: Residency, budget: _Budget, config: ModelConfig
) -> None:
    streams = wanted.experts != "resident" and bool(sizes.experts)
    least = sizes.one_of_each * min(fewest_slots(config), sizes.count)
    needed = sizes.others + least if streams else sizes.total
    if needed <= budget.weights:
        return
    how = "with streamed experts" if streams else "with all weights in memory"
    raise DeviceError(
        f"the memory budget leaves {_text(budget.weights)} for weights, which take "
        f"{_text(needed)} {how}; allow {_text(budget.total_for(needed))} (memory_budget, "
        "--memory-budget), or use fewer bits or a smaller model"
    )


def _within(room: int, sizes: WeightSizes) -> ExpertPlan:
    """As many slots as there is room for, the same number in every layer but for a rest.

    Every layer is used once a token: one with fewer slots than the others would lose more than
    these gain.
    """
    slots, rest = divmod(room - sizes.others, sizes.one_of_each)
    plan = {}
    for name, size in sizes.experts.items():
        extra = size <= rest and slots < sizes.count
        rest -= size * extra
        plan[name] = min(slots + extra, sizes.count)
    return ExpertPlan(plan)


def _text(nbytes: float) -> str:
    """Rounded up, so that it is enough."""
    unit, name = (1e9, "GB") if nbytes >= 1e9 else (1e6, "MB")
    return f"{math.ceil(nbytes / unit * 10) / 10:.1f} {name}"


def fewest_slots(config: ModelConfig) -> int:
    """Slots a layer needs at least: the experts of a token, and two to take turns."""
    return max(config.num_experts_per_tok, 2)


def _uniform(slots: int, sizes: WeightSizes, config: ModelConfig) -> ExpertPlan | None:
    least = fewest_slots(config)
    if slots < min(least, sizes.count):
        raise OptionError(f"slots is {slots}; this model needs at least {least}")
    if slots >= sizes.count:
        return None
    return ExpertPlan(dict.fromkeys(sizes.experts, slots))


def _sparse_layers(config: ModelConfig) -> list[str]:
    layers = range(config.num_hidden_layers)
    return [f"model.layers.{index}.mlp" for index in layers if config.is_sparse(index)]


def bytes_in_memory(info: TensorInfo, dtype: mx.Dtype) -> int:
    """Of a tensor that is converted to `dtype` if it holds plain numbers."""
    return math.prod(info.shape) * dtype.size if info.dtype in _FLOATS else info.nbytes
