"""Unquantized checkpoints: bfloat16, float16 or float32 in one safetensors file or many.

Experts one by one (the releases), stacked by transformers 5, or stacked by MLX.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_qwen3_convert.readers.base import Source
from mlx_qwen3_convert.readers.source import FolderSource
from mlx_qwen3_convert.readers.stored import Files


def open_safetensors(folder: Path, config: Mapping[str, Any], files: Files) -> Source:
    """Raises WeightsError naming the file that is missing or damaged, or a packed tensor."""
    return FolderSource(folder, config, files)
