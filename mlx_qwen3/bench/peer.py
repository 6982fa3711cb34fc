"""mlx-lm as a `Runner`: the same checkpoint, its defaults, its own generation loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.bench.graph import Kernels, launches
from mlx_qwen3.bench.runner import Step, free, kernels_of, named_arrays, on_cpu, zero_columns
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
        mx.synchronize(self._stream)  # the step ahead must not run into what comes next

    def step(self, token_ids: Sequence[int]) -> Step:
        return MlxLmStep.behind(self._model, token_ids)

    def kernels(self) -> Kernels:
        config = ModelConfig.from_folder(self._folder)
        counted = []
        for layers in range(1, min(config.num_hidden_layers, 2) + 1):
            model, _ = self._load_model(
                self._folder, lazy=True, strict=False, model_config={"num_hidden_layers": layers}
            )
            norm = named_arrays(model.parameters())["model.norm.weight"]
            step = MlxLmStep.behind_zeros(model, zero_columns(config, norm.dtype))
            counted.append(launches(step.build, decomposed=on_cpu()).total())
        return kernels_of(counted, config.num_hidden_layers)


class MlxLmStep:
    """What mlx-lm's generate_step does per token, without going ahead."""

    def __init__(self, model: Any, cache: list[Any], last: int) -> None:
        """last: the token that follows what is in the cache."""
        self._model = model
        self._cache = cache
        self._token = mx.array([last])
        mx.eval([layer.state for layer in self._cache], self._token)

    @classmethod
    def behind(cls, model: Any, token_ids: Sequence[int]) -> MlxLmStep:
        """Behind a prompt, which is read here."""
        cache = _make_cache(model)
        model(mx.array([list(token_ids)]), cache=cache)
        return cls(model, cache, token_ids[-1])

    @classmethod
    def behind_zeros(cls, model: Any, zeros: mx.array) -> MlxLmStep:
        """Behind keys and values that nothing computed."""
        cache = _make_cache(model)
        for layer in cache:
            layer.update_and_fetch(zeros, zeros)
        return cls(model, cache, last=0)

    def build(self) -> list[mx.array]:
        logits = self._model(self._token[None], cache=self._cache)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        self._token = mx.argmax(logprobs, axis=-1)
        return [self._token, logprobs]

    def kv_bytes(self, tokens: int) -> int:
        return sum(
            (layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[2] * tokens
            for layer in self._cache
        )


def _make_cache(model: Any) -> list[Any]:
    from mlx_lm.models.cache import make_prompt_cache

    return list(make_prompt_cache(model))
