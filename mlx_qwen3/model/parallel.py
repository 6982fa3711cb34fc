"""Loading one process's part of a model that is spread over several."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from mlx_qwen3.device import Device
from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.agreement import Digests, require_same
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.pipeline import Stage, StageSource
from mlx_qwen3.model.placement import LayerSizes, place_layers
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.sharding import ShardSource, Split
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import open_folder

Parallel = Literal["tensor", "pipeline"]


def load_part(
    folder: str | Path, parallel: str, peers: Peers, *, dtype: str | None = None
) -> Transformer:
    """This process's part of a model, which computes with the others what the whole one does.

    parallel: "tensor" (a part of every matrix) or "pipeline" (some of the layers).
    dtype: as in `load_model`.
    Raises PeerError where the model cannot be split so or the processes differ, OptionError,
    and what `load_model` does.
    """
    refuse_unknown(parallel)
    config, checkpoint, policy = open_folder(folder, dtype)
    require_same(Digests.of(Path(folder), checkpoint), peers)
    return _LOADERS[parallel](config, checkpoint, policy, peers)


def refuse_unknown(parallel: str) -> None:
    """Raise OptionError for what is no Parallel."""
    if parallel not in get_args(Parallel):
        names = ", ".join(get_args(Parallel))
        raise OptionError(f"parallel is {parallel!r}; expected one of {names}")


def _tensor_parallel(
    config: ModelConfig, checkpoint: Checkpoint, policy: ComputePolicy, peers: Peers
) -> Transformer:
    split = Split(config, peers.rank, peers.size)
    source = ShardSource(split, checkpoint, policy, peers)
    model = Transformer(split.own, source, peers)
    source.finish()
    return model


def _pipeline(
    config: ModelConfig, checkpoint: Checkpoint, policy: ComputePolicy, peers: Peers
) -> Transformer:
    """More layers for hosts with more memory."""
    own = Device.current().memory_limit
    limits = [int.from_bytes(one, "little") for one in peers.exchange(own.to_bytes(8, "little"))]
    sizes = LayerSizes.of(checkpoint, config.num_hidden_layers, policy.dtype)
    places = place_layers(sizes, limits[::-1])[::-1]  # the first layers are on the last rank
    source = StageSource(config, checkpoint, policy, peers, places[peers.rank])
    model = Stage(config, source, peers, places[peers.rank])
    source.finish()
    return model


_LOADERS = {"tensor": _tensor_parallel, "pipeline": _pipeline}
