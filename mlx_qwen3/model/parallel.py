"""Loading one process's part of a model that is spread over several."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.agreement import Digests, require_same
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.policy import ComputePolicy
from mlx_qwen3.model.sharding import ShardSource, Split
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import open_folder

Parallel = Literal["tensor"]


def load_part(
    folder: str | Path, parallel: str, peers: Peers, *, dtype: str | None = None
) -> Transformer:
    """This process's part of a model, which computes with the others what the whole one does.

    parallel: "tensor" (a part of every matrix). dtype: as in `load_model`.
    Raises PeerError where the model cannot be split so or the processes differ, OptionError,
    and what `load_model` does.
    """
    if parallel not in get_args(Parallel):
        names = ", ".join(get_args(Parallel))
        raise OptionError(f"parallel is {parallel!r}; expected one of {names}")
    config, checkpoint, policy = open_folder(folder, dtype)
    require_same(Digests.of(Path(folder), checkpoint), peers)
    return _tensor_parallel(config, checkpoint, policy, peers)


def _tensor_parallel(
    config: ModelConfig, checkpoint: Checkpoint, policy: ComputePolicy, peers: Peers
) -> Transformer:
    split = Split(config, peers.rank, peers.size)
    source = ShardSource(split, checkpoint, policy, peers)
    model = Transformer(split.own, source, peers)
    source.finish()
    return model
