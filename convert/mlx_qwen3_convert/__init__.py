"""Turns any Qwen3 checkpoint into an MLX-format folder, in bounded memory.

    from mlx_qwen3_convert import Options, convert

    convert("Qwen3-8B-FP8/", "qwen3-8b-4bit/", Options(recipe="4bit"))

Importing it loads a fast BLAS first; the names above are imported when first used.
"""

from typing import TYPE_CHECKING, Any

from mlx_qwen3 import device

if TYPE_CHECKING:
    from mlx_qwen3_convert.job import Options, Result, convert

__all__ = ["Options", "Result", "convert"]

device.prepare()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("mlx_qwen3_convert.job"), name)
