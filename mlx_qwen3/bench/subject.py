"""What a benchmark runs: a model that is here, or random weights in a folder that goes again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen3.bench.shapes import shape_config, stored_tensors, write_checkpoint
from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.releases import find

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Subject:
    """label: what a person calls it."""

    label: str
    folder: Path
    config: ModelConfig


@dataclass(frozen=True)
class Shape:
    """A release's shape at `bits` per weight; layers, hidden, vocab: smaller than it, if given."""

    shape: str
    bits: int = 4
    layers: int | None = None
    hidden: int | None = None
    vocab: int | None = None

    @property
    def label(self) -> str:
        """ "0.6b shape, 4-bit, hidden 64"."""
        sizes = {"layers": self.layers, "hidden": self.hidden, "vocab": self.vocab}
        said = [f"{name} {size}" for name, size in sizes.items() if size is not None]
        return ", ".join([f"{self.shape} shape", f"{self.bits}-bit", *said])

    def config(self) -> dict[str, Any]:
        """Its config.json. Raises ModelNotFoundError, OptionError."""
        return shape_config(
            find(self.shape).release, layers=self.layers, hidden=self.hidden, vocab=self.vocab
        )

    def check(self) -> None:
        """Raise what `config` raises, and OptionError for bits not known."""
        stored_tensors(self.config(), self.bits)


def existing(label: str, folder: Path) -> Subject:
    """A model folder. Raises ConfigError."""
    return Subject(label, folder, ModelConfig.from_folder(folder))


@contextmanager
def random_subject(shape: Shape, tokenizer: Path | None = None) -> Iterator[Subject]:
    """Random weights in a temporary folder, with a copy of the tokenizer that lies in `tokenizer`.

    Raises ModelNotFoundError, OptionError, ConfigError, DeviceError (the disk is full) and
    TokenizerError (none in that folder).
    """
    with tempfile.TemporaryDirectory(prefix="mlx-qwen3-bench-") as name:
        folder = write_checkpoint(shape.config(), shape.bits, Path(name))
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)
        yield existing(shape.label, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer and chat template. Raises TokenizerError when there is none."""
    found = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not any(file.name in ("tokenizer.json", "tokenizer.model") for file in found):
        raise TokenizerError(
            f"{source}: no tokenizer.json or tokenizer.model; expected a folder with a tokenizer"
        )
    for file in found:
        shutil.copyfile(file, folder / file.name)
