"""What is measured: a model that loads, generates, and whose step can be counted.

Runner      the interface; `OwnRunner` is this package, peer.py has mlx-lm's
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_qwen3.bench.graph import Build, Kernels, launches
from mlx_qwen3.device import Device
from mlx_qwen3.generation.loop import TokenLoop
from mlx_qwen3.generation.sampling import Sampler, SamplingParams
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.experts import ExpertTraffic
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.residency import Residency
from mlx_qwen3.model.step import CompiledStep, DecodeStep, PlainStep
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import CheckpointSource, load_model

OWN = "mlx-qwen3"
_GREEDY = SamplingParams(temperature=0.0)
_FEW = 3  # tokens in the cache when kernels are counted


class Runner(Protocol):
    """A way to run one checkpoint. `load` before everything else.

    slow: it may be given shorter prompts and fewer tokens than asked for.
    """

    @property
    def name(self) -> str: ...

    @property
    def slow(self) -> bool: ...

    def load(self) -> None:
        """Read the weights into memory."""
        ...

    def unload(self) -> None:
        """Free them."""
        ...

    def parameters(self) -> dict[str, mx.array]:
        """The weights in memory by dotted name."""
        ...

    def generate(self, token_ids: Sequence[int], count: int) -> Iterator[int]:
        """Greedy tokens, each as the host gets it; one is always computed ahead."""
        ...

    def land(self) -> None:
        """Wait for the step that `generate` is ahead."""
        ...

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of keys and values that attending to that many tokens reads."""
        ...

    def expert_traffic(self) -> ExpertTraffic | None:
        """What was read of streamed experts so far; None where all weights are in memory."""
        ...

    def kernels(self) -> Kernels | None:
        """Launches per step, as a GPU would run it; needs no loaded model. None: not countable."""
        ...


STEPS: dict[str, Callable[[Transformer], DecodeStep]] = {
    "compiled": lambda model: CompiledStep(model, after=0),
    "plain": PlainStep,
}


class OwnRunner:
    """This package. step: a form of the decode step, of STEPS; None: what the policy wants.

    A policy that wants a compiled step gets it from the first token on: what is measured is a
    program that has been running. residency: as load_model takes it.
    """

    slow = False

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str | None = None,
        step: str | None = None,
        residency: Residency | None = None,
    ) -> None:
        self.name = OWN if step is None else f"{step} step"
        self._folder = folder
        self._dtype = dtype
        self._step = step
        self._residency = residency
        self._model: Transformer | None = None

    def load(self) -> None:
        self._model = model = load_model(self._folder, dtype=self._dtype, residency=self._residency)
        compiled = isinstance(model.step, CompiledStep)
        model.step = STEPS[self._step or ("compiled" if compiled else "plain")](model)

    def unload(self) -> None:
        self._model = None
        free()

    def parameters(self) -> dict[str, mx.array]:
        return named_arrays(self._loaded.parameters())

    def generate(self, token_ids: Sequence[int], count: int) -> Iterator[int]:
        sampler = Sampler(_GREEDY, self._loaded.config.vocab_size, seed=0)
        loop = TokenLoop(self._loaded, self._loaded.make_cache(), sampler)
        loop.feed(token_ids)
        for _ in range(count):
            yield loop.next().token_id
        # Here the loop goes, and waits for the step it is ahead.

    def land(self) -> None:
        mx.synchronize()

    def kv_bytes(self, tokens: int) -> int:
        cache = _filled_cache(self._loaded, self._loaded.norm.weight.dtype)
        return sum(
            layer.nbytes // layer.capacity * min(tokens, layer.max_size or tokens)
            for layer in cache.layers
        )

    def expert_traffic(self) -> ExpertTraffic | None:
        return self._loaded.expert_traffic

    def kernels(self) -> Kernels | None:
        if self._step == "compiled":
            return None  # under mx.compile the operations are not told apart
        config = ModelConfig.from_folder(self._folder)
        policy = gpu_policy(config)
        models = [self._shortened(config, layers, policy) for layers in (1, 2)]
        counted = [
            launches(_next_step(model, policy.dtype), decomposed=on_cpu()).total()
            for model in models
            if model is not None
        ]
        return kernels_of(counted, config.num_hidden_layers)

    def _shortened(
        self, config: ModelConfig, layers: int, policy: ComputePolicy
    ) -> Transformer | None:
        """The model with its first layers only; None where it has fewer."""
        if layers > config.num_hidden_layers:
            return None
        short = replace(config, num_hidden_layers=layers)
        return Transformer(
            short, CheckpointSource(short, Checkpoint.from_folder(self._folder), policy)
        )

    @property
    def _loaded(self) -> Transformer:
        if self._model is None:
            raise RuntimeError("load the model first")
        return self._model


def _next_step(model: Transformer, dtype: mx.Dtype) -> Build:
    """What TokenLoop builds for a token. The model need not be able to run here."""
    cache = _filled_cache(model, dtype)
    sampler = Sampler(_GREEDY, model.config.vocab_size, seed=0)
    token_ids = mx.array([[0]])
    mx.eval(cache.state(), token_ids)
    return lambda: sampler.sample(
        model.logits(model.hidden_states(token_ids, cache)[:, -1])
    ).arrays()


def _filled_cache(model: Transformer, dtype: mx.Dtype) -> Cache:
    """A few tokens in it that no model computed."""
    cache, zeros = model.make_cache(), zero_columns(model.config, dtype)
    for layer in cache.layers:
        layer.update(zeros, zeros)
    return cache


def gpu_policy(config: ModelConfig) -> ComputePolicy:
    """How a GPU would compute this model: the launches that `kernels` counts."""
    device = Device.current()
    if device.backend == "cpu":
        device = replace(device, backend="metal")
    return ComputePolicy.for_device(device, checkpoint_dtype=config.torch_dtype)


def kernels_of(counted: Sequence[int], layers: int) -> Kernels:
    """From the launches of the first layer alone and of the first two: all layers are alike."""
    if len(counted) == 1:
        return Kernels(counted[0], counted[0], 1)
    per_layer = counted[1] - counted[0]
    return Kernels(counted[0] + per_layer * (layers - 1), per_layer, layers)


def on_cpu() -> bool:
    """Whether MLX computes on its CPU backend."""
    return Device.current().backend == "cpu"


def zero_columns(config: ModelConfig, dtype: mx.Dtype) -> mx.array:
    """Keys, or values, of a few tokens: (1, num_key_value_heads, few, head_dim)."""
    return mx.zeros((1, config.num_key_value_heads, _FEW, config.head_dim), dtype)


def named_arrays(tree: object) -> dict[str, mx.array]:
    """A module's parameters by dotted name."""
    return dict(tree_flatten(tree))


def free() -> None:
    """Give back what the last model held."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
