"""mlx-lm as a `Runner`: the same checkpoint, its defaults, its own generation loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.bench.graph import Build, Kernels, launches
from mlx_qwen3.bench.runner import free, kernels_of, named_arrays, on_cpu, zero_columns
from mlx_qwen3.model.config import ModelConfig

PEER = "mlx-lm"


class MlxLmRunner:
    """It computes in the dtype of the checkpoint, which on a CPU backend can be very slow."""

    name = PEER
    slow = True

    def __init__(self, folder: Path) -> None:
        # Seconds of imports, which no figure is to contain.
        from mlx_lm.generate import generate_step, generation_stream
        from mlx_lm.utils import load_model

        self._generate_step, self._stream = generate_step, generation_stream
        self._load_model = load_model
        self._folder = folder
        self._model: Any = None

    def load(self) -> None:
        self._model, _ = self._load_model(self._folder)

    def unload(self) -> None:
        self._model = None
        free()

    def parameters(self) -> dict[str, mx.array]:
        return named_arrays(self._model.parameters())

    def generate(self, token_ids: Sequence[int], count: int) -> Iterator[int]:
        prompt = mx.array(list(token_ids))
        steps = self._generate_step(prompt, self._model, max_tokens=count + 1)
        for _ in range(count):
            token, _ = next(steps)
            yield int(token)
        self.land()  # the step ahead must not run into what comes next

    def land(self) -> None:
        mx.synchronize(self._stream)

    def kv_bytes(self, tokens: int) -> int:
        config = ModelConfig.from_folder(self._folder)
        return sum(
            (layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[2] * tokens
            for layer in _filled_cache(self._model, config)
        )

    def expert_traffic(self) -> None:
        """It has all weights in memory."""

    def kernels(self) -> Kernels:
        config = ModelConfig.from_folder(self._folder)
        counted = []
        for layers in range(1, min(config.num_hidden_layers, 2) + 1):
            model, _ = self._load_model(
                self._folder, lazy=True, strict=False, model_config={"num_hidden_layers": layers}
            )
            build = _next_step(model, config)
            counted.append(launches(build, decomposed=on_cpu()).total())
        return kernels_of(counted, config.num_hidden_layers)


def _next_step(model: Any, config: ModelConfig) -> Build:
    """What generate_step builds for a token."""
    cache = _filled_cache(model, config)
    token_ids = mx.array([[0]])
    mx.eval([layer.state for layer in cache], token_ids)

    def build() -> list[mx.array]:
        logits = model(token_ids, cache=cache)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        return [mx.argmax(logprobs, axis=-1), logprobs]

    return build


def _filled_cache(model: Any, config: ModelConfig) -> list[Any]:
    """A few tokens in it that no model computed, in the dtype of the model."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = list(make_prompt_cache(model))
    zeros = zero_columns(config, named_arrays(model.parameters())["model.norm.weight"].dtype)
    for layer in cache:
        layer.update_and_fetch(zeros, zeros)
    return cache
