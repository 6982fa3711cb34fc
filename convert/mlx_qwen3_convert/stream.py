"""A checkpoint run one layer at a time: what it takes in memory is a layer, not a model.

All windows of a text pass a layer before the next one is read, so every tensor is read once and
a model larger than memory can be measured, if not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from mlx_qwen3.device import Device
from mlx_qwen3.model.cache import make_layer_cache
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig, read_config
from mlx_qwen3.model.linear import AnyLinear
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.transformer import TransformerLayer, make_norm, make_rope
from mlx_qwen3.model.weights import CheckpointSource
from mlx_qwen3_convert.calibration import Window

# Called with (steps done, steps to do).
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The progress callback of those who do not look."""


class LayerStream:
    """The parts of a checkpoint in the order in which a token meets them.

    dtype: as in mlx_qwen3.load. Raises ConfigError, WeightsError, OptionError.
    """

    def __init__(self, folder: Path, *, dtype: str | None = None) -> None:
        self.config = ModelConfig.from_dict(read_config(folder))
        policy = ComputePolicy.for_device(
            Device.current(), checkpoint_dtype=self.config.torch_dtype, dtype=dtype
        )
        self._source = CheckpointSource(self.config, Checkpoint.from_folder(folder), policy)
        self._rope = make_rope(self.config, self._source)

    def run(
        self, windows: Sequence[Window], progress: Progress = silent
    ) -> tuple[list[mx.array], AnyLinear]:
        """What the head reads for each window, (1, L, hidden_size), and the head.

        Can be called once. The progress counts layers.
        """
        count = self.config.num_hidden_layers
        embedding = self._linear("model.embed_tokens")
        states = [embedding.rows(mx.array([window])) for window in windows]
        mx.eval(states)
        for index in range(count):
            states = self._through_layer(index, states)
            progress(index + 1, count)
        norm = make_norm("model.norm", self.config, self._source)
        states = [norm(x) for x in states]
        head = embedding if self.config.tie_word_embeddings else self._linear("lm_head")
        mx.eval(states)
        self._source.finish()
        return states, head

    def _linear(self, name: str) -> AnyLinear:
        linear = self._source.linear(name, self.config.vocab_size, self.config.hidden_size)
        self._source.settle(linear)
        return linear

    def _through_layer(self, index: int, states: list[mx.array]) -> list[mx.array]:
        layer = TransformerLayer(self.config, index, self._rope.attention_factor, self._source)
        through = []
        for x in states:
            cache = make_layer_cache(
                head_dim=self.config.head_dim, max_size=self.config.window(index)
            )
            y = layer(x, cache, self._rope.at(0, x.shape[1]), cache.mask(x.shape[1]))
            mx.eval(y)
            through.append(y)
        mx.clear_cache()
        return through
