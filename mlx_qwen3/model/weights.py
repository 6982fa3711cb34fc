"""From a checkpoint folder to a model: tensors are read, cast, fused and freed layer by layer.

    CheckpointSource   the tensors of a folder, Hugging Face or MLX layout
    ShapeSource        no tensors at all: names and shapes, for counting and planning

Both are a transformer's `TensorSource`. Peak memory while loading is the model plus one layer:
a layer's tensors are evaluated, and what they were fused from let go, before the next is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_qwen3.device import Device
from mlx_qwen3.errors import ConfigError, WeightsError
from mlx_qwen3.model.activations import gated
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig, read_config
from mlx_qwen3.model.experts import ExpertMatrices, Experts, ResidentExperts
from mlx_qwen3.model.inventory import SCALED_MODES, Inventory
from mlx_qwen3.model.linear import AnyLinear, Linear, Quantization, QuantizedLinear
from mlx_qwen3.model.operations import Operations
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.residency import ExpertPlan, Residency, plan_experts
from mlx_qwen3.model.step import CompiledStep
from mlx_qwen3.model.transformer import Transformer

if TYPE_CHECKING:
    from mlx_qwen3.model.expert_store import ExpertStore

# Bytes of everything in memory up to which a product is too small for several threads.
_ONE_THREAD_BELOW = 64 << 20
_MODES = ("affine", *SCALED_MODES.values())
# Tensors that published checkpoints carry and no model needs.
_IGNORED = (".rotary_emb.inv_freq",)


def load_model(
    folder: str | Path, *, dtype: str | None = None, residency: Residency | None = None
) -> Transformer:
    """Load a model folder in Hugging Face or MLX layout.

    dtype: "bfloat16", "float16" or "float32" for activations and unpacked weights; None: the
    device's policy. residency: which weights are in memory; None: all, or of experts as many as
    this device can hold. Raises ConfigError, WeightsError (naming the tensor or file),
    OptionError, DeviceError when a budget is too small.
    """
    config, checkpoint, policy = open_folder(folder, dtype)
    device = Device.current()
    plan = plan_experts(residency or Residency(), config, checkpoint, policy.dtype, device)
    source = CheckpointSource(config, checkpoint, policy, plan)
    model = Transformer(config, source)
    source.finish()
    layer_bytes = model.bytes_per_token() / config.num_hidden_layers
    if policy.compiles_step(layer_bytes, streamed=plan is not None):
        model.step = CompiledStep(model)
    device.blas.use_threads(1 if mx.get_active_memory() < _ONE_THREAD_BELOW else None)
    return model


def open_folder(
    folder: str | Path, dtype: str | None = None
) -> tuple[ModelConfig, Checkpoint, ComputePolicy]:
    """What a model folder holds and how it is computed here, before any tensor is read.

    Arguments and errors are `load_model`'s.
    """
    raw = read_config(folder)
    config = ModelConfig.from_dict(raw)
    _refuse_foreign_quantization(raw, Path(folder))
    checkpoint = Checkpoint.from_folder(folder)
    policy = ComputePolicy.for_device(
        Device.current(), checkpoint_dtype=config.torch_dtype, dtype=dtype
    )
    return config, checkpoint, policy


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an unquantized checkpoint by its Hugging Face name, experts one by one."""
    source = ShapeSource(config)
    Transformer(config, source)
    return source.shapes


def num_parameters(config: ModelConfig) -> int:
    """How many weights a model of this architecture has; a tied head counts once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def _refuse_foreign_quantization(raw: Mapping[str, Any], folder: Path) -> None:
    """Formats of other libraries, and modes of MLX that this version does not know."""
    own = raw.get("quantization") or {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"config.json: quantization is {own!r}; expected an object")
    for settings in (own, *own.values()):
        mode = settings.get("mode", "affine") if isinstance(settings, Mapping) else "affine"
        if mode not in _MODES:
            raise ConfigError(
                f"config.json: quantization mode {mode!r} is not known; "
                f"expected one of {', '.join(_MODES)}"
            )
    foreign = raw.get("quantization_config")
    if raw.get("quantization") is None and isinstance(foreign, Mapping):
        method = foreign.get("quant_method")
        if method is not None:
            raise WeightsError(
                f"{folder}: weights are in {method} format; expected unquantized or MLX-format "
                "weights: use an MLX release of the model (mlx-qwen3 models lists them)"
            )


class CheckpointSource:
    """Builds a model's parts from a checkpoint's tensors. plan: of streamed experts, if any."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        policy: ComputePolicy,
        plan: ExpertPlan | None = None,
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._policy = policy
        self._inventory = Inventory(checkpoint)
        self.operations = Operations.for_policy(config.hidden_act, policy)
        self._store = None if plan is None else self._make_store(plan)

    def tensor(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """The tensor in the policy's dtype. Raises WeightsError when absent or misshapen."""
        self._inventory.claim_floats(name, shape)
        return self._read(name).astype(self._policy.dtype)

    def linear(self, name: str, out_dims: int, in_dims: int, *, bias: bool = False) -> AnyLinear:
        """Dense or packed, as the checkpoint has it. Raises WeightsError naming the tensor."""
        bias_tensor = self.tensor(f"{name}.bias", (out_dims,)) if bias else None
        if not self._inventory.is_packed(name):
            return Linear(self.tensor(f"{name}.weight", (out_dims, in_dims)), bias_tensor)
        packed = self._packed(name, (out_dims,), in_dims)
        return QuantizedLinear(
            *packed, bias_tensor, dtype=self._policy.dtype, dense_from=self._policy.dense_from
        )

    def experts(self, name: str) -> Experts:
        """All experts of a sparse layer, from any of the three layouts."""
        if self._store is not None:
            return self._store.experts(name)
        gate_up = self._fused_gate_up(name)
        self._settle_experts(gate_up)
        hidden, width = self._config.hidden_size, self._config.moe_intermediate_size
        down = self._expert_matrices(name, "down_proj", hidden, width)
        self._settle_experts([down])
        return ResidentExperts(gate_up, down, self.operations.gate)

    def _settle_experts(self, parts: list[ExpertMatrices]) -> None:
        """Experts are most of a layer: load them a part at a time, to hold few of them twice."""
        for part in parts:
            self._policy.refuse_experts(part.weight.dtype, scaled=part.global_scale is not None)
            mx.eval(part.parameters())

    def _make_store(self, plan: ExpertPlan) -> ExpertStore:
        # Here, because it needs numpy, which takes its time to import.
        from mlx_qwen3.model.expert_store import ExpertStore

        return ExpertStore(self._config, self._inventory, self._policy, self.operations, plan)

    def settle(self, module: Module) -> None:
        """Read the module's tensors now; MLX lets go of what they were made from."""
        mx.eval(module.parameters())

    def finish(self) -> None:
        """Raise WeightsError if the checkpoint has tensors that no part of the model asked for."""
        self._inventory.refuse_unclaimed(self._is_needless)

    def _is_needless(self, name: str) -> bool:
        tied = self._config.tie_word_embeddings
        return name.endswith(_IGNORED) or (tied and name.startswith("lm_head."))

    def _take(self, name: str, shape: tuple[int, ...]) -> mx.array:
        self._inventory.claim(name, shape)
        return self._read(name)

    def _read(self, name: str) -> mx.array:
        """A claimed tensor, as the file has it."""
        return self._checkpoint.take(name)

    def _packed(
        self, name: str, leading: tuple[int, ...], in_dims: int
    ) -> tuple[mx.array, mx.array, mx.array | None, Quantization]:
        """weight, scales, biases and format of a packed matrix of shape (*leading, in_dims)."""
        quantization = self._inventory.quantization(name, in_dims)
        groups = (*leading, in_dims // quantization.group_size)
        weight = self._take(f"{name}.weight", (*leading, in_dims * quantization.bits // 32))
        scales = self._take(f"{name}.scales", groups)
        if quantization.mode != "affine":
            return weight, scales, None, quantization
        biases = self._take(f"{name}.biases", groups).astype(self._policy.dtype)
        return weight, scales.astype(self._policy.dtype), biases, quantization

    def _fused_gate_up(self, name: str) -> list[ExpertMatrices]:
        hidden, width = self._config.hidden_size, self._config.moe_intermediate_size
        stacked = f"{name}.experts.gate_up_proj"
        if stacked in self._checkpoint:
            shape = (self._config.num_experts, 2 * width, hidden)
            return [ExpertMatrices(self.tensor(stacked, shape))]
        gate = self._expert_matrices(name, "gate_proj", width, hidden)
        up = self._expert_matrices(name, "up_proj", width, hidden)
        if gate.quantization != up.quantization or gate.global_scale is not None:
            return [gate, up]
        fused = {
            part: mx.concatenate([getattr(gate, part), getattr(up, part)], axis=1)
            for part in ("weight", "scales", "biases")
            if getattr(gate, part) is not None
        }
        return [ExpertMatrices(**fused, quantization=gate.quantization)]

    def _expert_matrices(self, name: str, part: str, out_dims: int, in_dims: int) -> ExpertMatrices:
        """(num_experts, out, in) from MLX's, transformers 5's or the published layout."""
        count = self._config.num_experts
        switch, stacked = f"{name}.switch_mlp.{part}", f"{name}.experts.{part}"
        if self._inventory.is_packed(switch):
            weight, scales, biases, quantization = self._packed(switch, (count, out_dims), in_dims)
            return ExpertMatrices(weight, scales, biases, self._global_scale(switch), quantization)
        if f"{switch}.weight" in self._checkpoint:
            return ExpertMatrices(self.tensor(f"{switch}.weight", (count, out_dims, in_dims)))
        if stacked in self._checkpoint:
            return ExpertMatrices(self.tensor(stacked, (count, out_dims, in_dims)))
        names = [f"{name}.experts.{expert}.{part}.weight" for expert in range(count)]
        return ExpertMatrices(mx.stack([self.tensor(one, (out_dims, in_dims)) for one in names]))

    def _global_scale(self, name: str) -> mx.array | None:
        scale = f"{name}.global_scale"
        if scale not in self._checkpoint:
            return None
        return self._take(scale, (self._config.num_experts,)).astype(mx.float32)


class ShapeSource:
    """Builds a model from placeholders, noting every tensor's name and shape.

    The placeholders are never evaluated: a 235B model is a few megabytes of Python objects.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.operations = Operations(gated(config.hidden_act, compiled=False))

    def tensor(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """A placeholder of this shape."""
        self.shapes[name] = shape
        return mx.zeros(shape)

    def linear(self, name: str, out_dims: int, in_dims: int, *, bias: bool = False) -> Linear:
        """A placeholder projection."""
        bias_tensor = self.tensor(f"{name}.bias", (out_dims,)) if bias else None
        return Linear(self.tensor(f"{name}.weight", (out_dims, in_dims)), bias_tensor)

    def experts(self, name: str) -> ResidentExperts:
        """Placeholder experts, noted one by one as published checkpoints have them."""
        count = self._config.num_experts
        hidden, width = self._config.hidden_size, self._config.moe_intermediate_size
        parts = {"gate_proj": (width, hidden), "up_proj": (width, hidden)}
        parts["down_proj"] = (hidden, width)
        for expert in range(count):
            for part, shape in parts.items():
                self.shapes[f"{name}.experts.{expert}.{part}.weight"] = shape
        gate_up = ExpertMatrices(mx.zeros((count, 2 * width, hidden)))
        down = ExpertMatrices(mx.zeros((count, hidden, width)))
        return ResidentExperts([gate_up], down, self.operations.gate)

    def settle(self, module: Module) -> None:
        """Nothing to load."""
