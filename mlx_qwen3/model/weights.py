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
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_qwen3.device import Device
from mlx_qwen3.errors import ConfigError, DeviceError, WeightsError
from mlx_qwen3.model.activations import Activation, gated
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig, read_config
from mlx_qwen3.model.experts import ExpertMatrices, ResidentExperts
from mlx_qwen3.model.linear import AnyLinear, Linear, Quantization, QuantizedLinear
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.transformer import Transformer

# MLX's formats with 8-bit scales, by (bits, group_size); each mode has exactly one pair.
_SCALED_MODES = {(4, 32): "mxfp4", (4, 16): "nvfp4", (8, 32): "mxfp8"}
_MODES = ("affine", *_SCALED_MODES.values())
_FLOATS = ("BF16", "F16", "F32")
_AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (16, 32, 64, 128)
# Tensors that published checkpoints carry and no model needs.
_IGNORED = (".rotary_emb.inv_freq",)


def load_model(
    folder: str | Path, *, dtype: str | None = None, policy: ComputePolicy | None = None
) -> Transformer:
    """Load a model folder in Hugging Face or MLX layout.

    dtype: "bfloat16", "float16" or "float32" for activations and unpacked weights; None: the
    device's policy. policy: decides in its place, dtype included.
    Raises ConfigError, WeightsError (naming the tensor or file), OptionError.
    """
    raw = read_config(folder)
    config = ModelConfig.from_dict(raw)
    _refuse_foreign_quantization(raw, Path(folder))
    policy = policy or ComputePolicy.for_device(
        Device.current(), checkpoint_dtype=config.torch_dtype, dtype=dtype
    )
    source = CheckpointSource(config, Checkpoint.from_folder(folder), policy)
    model = Transformer(config, source)
    source.finish()
    return model


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
    """Builds a model's parts from a checkpoint's tensors."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, policy: ComputePolicy) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._policy = policy
        self._left = set(checkpoint)
        self.activation: Activation = gated(config.hidden_act, compiled=policy.compiled)

    def tensor(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """The tensor in the policy's dtype. Raises WeightsError when absent or misshapen."""
        dtype = self._checkpoint.info(name).dtype
        if dtype not in _FLOATS:
            raise WeightsError(
                f"tensor {name} holds {dtype} numbers; expected {', '.join(_FLOATS)} or an MLX "
                "quantization with scales"
            )
        return self._take(name, shape).astype(self._policy.dtype)

    def linear(self, name: str, out_dims: int, in_dims: int, *, bias: bool = False) -> AnyLinear:
        """Dense or packed, as the checkpoint has it. Raises WeightsError naming the tensor."""
        bias_tensor = self.tensor(f"{name}.bias", (out_dims,)) if bias else None
        if not self._is_packed(name):
            return Linear(self.tensor(f"{name}.weight", (out_dims, in_dims)), bias_tensor)
        packed = self._packed(name, (out_dims,), in_dims)
        return QuantizedLinear(
            *packed, bias_tensor, dtype=self._policy.dtype, dense_from=self._policy.dense_from
        )

    def experts(self, name: str) -> ResidentExperts:
        """All experts of a sparse layer, from any of the three layouts."""
        gate_up = self._fused_gate_up(name)
        self._settle_experts(gate_up)
        hidden, width = self._config.hidden_size, self._config.moe_intermediate_size
        down = self._expert_matrices(name, "down_proj", hidden, width)
        self._settle_experts([down])
        return ResidentExperts(gate_up, down, self.activation)

    def _settle_experts(self, parts: list[ExpertMatrices]) -> None:
        """Experts are most of a layer: load them a part at a time, to hold few of them twice.

        Raises DeviceError for what MLX cannot multiply here, which it would say only later.
        """
        for part in parts:
            if self._policy.backend == "cpu" and part.global_scale is not None:
                raise DeviceError(
                    "experts with a global_scale (nvfp4) do not run on MLX's CPU backend; "
                    "use another quantization"
                )
            if self._policy.backend == "cpu" and part.weight.dtype in (mx.bfloat16, mx.float16):
                raise DeviceError(
                    "unquantized experts run on MLX's CPU backend in float32 only; "
                    "leave dtype out, or set it to float32"
                )
            mx.eval(part.parameters())

    def settle(self, module: Module) -> None:
        """Read the module's tensors now; MLX lets go of what they were made from."""
        mx.eval(module.parameters())

    def finish(self) -> None:
        """Raise WeightsError if the checkpoint has tensors that no part of the model asked for."""
        head = "lm_head." if self._config.tie_word_embeddings else None
        extra = sorted(
            name
            for name in self._left
            if not name.endswith(_IGNORED) and not (head and name.startswith(head))
        )
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise WeightsError(
                f"tensor {extra[0]}{more} is not part of this architecture; "
                "config.json and weights do not belong together"
            )

    def _take(self, name: str, shape: tuple[int, ...] | None) -> mx.array:
        info = self._checkpoint.info(name)
        if shape is not None and info.shape != shape:
            raise WeightsError(
                f"tensor {name} has shape {info.shape}; config.json makes it {shape}: "
                "they do not belong together"
            )
        self._left.discard(name)
        self._left.discard(name.removeprefix("model."))
        return self._checkpoint.take(name)

    def _is_packed(self, name: str) -> bool:
        weight = f"{name}.weight"
        return f"{name}.scales" in self._checkpoint or (
            weight in self._checkpoint and self._checkpoint.info(weight).dtype == "U32"
        )

    def _packed(
        self, name: str, leading: tuple[int, ...], in_dims: int
    ) -> tuple[mx.array, mx.array, mx.array | None, Quantization]:
        """weight, scales, biases and format of a packed matrix of shape (*leading, in_dims)."""
        quantization = self._quantization(name, in_dims)
        groups = (*leading, in_dims // quantization.group_size)
        weight = self._take(f"{name}.weight", (*leading, in_dims * quantization.bits // 32))
        scales = self._take(f"{name}.scales", groups)
        if quantization.mode != "affine":
            return weight, scales, None, quantization
        biases = self._take(f"{name}.biases", groups).astype(self._policy.dtype)
        return weight, scales.astype(self._policy.dtype), biases, quantization

    def _quantization(self, name: str, in_dims: int) -> Quantization:
        """Read the format off the shapes: exact, where a config's per-layer table may be wrong."""
        weight = self._checkpoint.info(f"{name}.weight")
        scales = self._checkpoint.info(f"{name}.scales")
        group_size, rest = divmod(in_dims, scales.shape[-1])
        bits, part = divmod(weight.shape[-1] * 32, in_dims)
        fits = not rest and not part and group_size in _GROUP_SIZES
        if fits and scales.dtype == "U8" and (bits, group_size) in _SCALED_MODES:
            return Quantization(group_size, bits, _SCALED_MODES[bits, group_size])
        if fits and scales.dtype != "U8" and bits in _AFFINE_BITS:
            return Quantization(group_size, bits)
        raise WeightsError(
            f"tensor {name}.weight: shape {weight.shape} with scales {scales.shape} "
            f"({scales.dtype}) is no MLX quantization of {in_dims} inputs"
        )

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
        if self._is_packed(switch):
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
        self.activation: Activation = gated(config.hidden_act, compiled=False)

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
        return ResidentExperts([gate_up], down, self.activation)

    def settle(self, module: Module) -> None:
        """Nothing to load."""
