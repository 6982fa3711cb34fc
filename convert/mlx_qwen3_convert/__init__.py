"""Turns any Qwen3 checkpoint into an MLX-format folder, in bounded memory.

    from mlx_qwen3_convert import Options, convert, convert_from_hub, upload

    convert("Qwen3-8B-FP8/", "qwen3-8b-4bit/", Options(recipe="4bit"))
    convert_from_hub("Qwen/Qwen3-30B-A3B", "30b-4bit/")  # never all of it on this disk
    upload("30b-4bit/", "me/Qwen3-30B-A3B-4bit", private=True)

Importing it loads a fast BLAS first; the names above are imported when first used.
"""

from typing import TYPE_CHECKING, Any

from mlx_qwen3 import device

if TYPE_CHECKING:
    from mlx_qwen3_convert.job import Options, Result, convert
    from mlx_qwen3_convert.publish import upload
    from mlx_qwen3_convert.streaming import convert_from_hub

__all__ = ["Options", "Result", "convert", "convert_from_hub", "upload"]

_MODULES = {"convert_from_hub": "streaming", "upload": "publish"}

device.prepare()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = _MODULES.get(name, "job")
    return getattr(importlib.import_module(f"mlx_qwen3_convert.{module}"), name)
