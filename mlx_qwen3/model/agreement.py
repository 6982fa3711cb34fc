"""Whether all processes have the same model and the same program, before they work together.

What each has is boiled down to digests, exchanged and compared everywhere: all start, or none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mlx_qwen3._version import __version__
from mlx_qwen3.errors import PeerError
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.peers import Peers

# Headers of a model and of its fine-tune are the same: of some tensors the first bytes count too.
_SAMPLED_TENSORS, _SAMPLED_BYTES = 256, 4096
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Digests:
    """Of what must be equal everywhere: a digest (32 bytes) by what it is of."""

    parts: Mapping[str, bytes]

    @classmethod
    def of(cls, folder: Path, checkpoint: Checkpoint) -> Digests:
        """Of this process."""
        return cls(
            {
                "versions": _digest(f"{__version__} {version('mlx')}".encode()),
                "config.json": _digest((folder / "config.json").read_bytes()),
                "weights": _weights(checkpoint),
                "tokenizer or generation_config.json": _digest(*_texts(folder)),
            }
        )


def require_same(own: Digests, peers: Peers) -> None:
    """Raise PeerError, on every process, naming those whose digests differ from rank 0's."""
    everybody = peers.exchange(b"".join(own.parts.values()))
    for place, what in enumerate(own.parts):
        parts = [message[32 * place : 32 * (place + 1)] for message in everybody]
        others = [rank for rank, part in enumerate(parts) if part != parts[0]]
        if others:
            names = " and ".join(f"rank {rank}" for rank in others)
            raise PeerError(
                f"{what} of {names} differ from those of rank 0; expected the same everywhere: "
                "install the same version and download the same model on every host"
            )


def _weights(checkpoint: Checkpoint) -> bytes:
    """Names, types and shapes of all tensors, and a few bytes of some."""
    names = sorted(checkpoint)
    entries = [f"{name} {(i := checkpoint.tensors[name]).dtype} {i.shape}" for name in names]
    # Drawn by lot, the same everywhere: every n-th could always be of the same kind.
    drawn = sorted(names, key=lambda name: _digest(name.encode()))[:_SAMPLED_TENSORS]
    return _digest("\n".join(entries).encode(), *(_start(checkpoint, name) for name in drawn))


def _start(checkpoint: Checkpoint, name: str) -> bytes:
    info = checkpoint.tensors[name]
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        return stream.read(min(info.nbytes, _SAMPLED_BYTES))


def _texts(folder: Path) -> list[bytes]:
    paths = [folder / name for name in _TEXT_FILES]
    return [path.read_bytes() if path.exists() else b"" for path in paths]


def _digest(*pieces: bytes) -> bytes:
    state = hashlib.sha256()
    for piece in pieces:
        state.update(len(piece).to_bytes(8, "little") + piece)
    return state.digest()
