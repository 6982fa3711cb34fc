"""Source formats: `open_source` looks at what is there and opens it.

base         the interface
stored       places in files, read by the row
source       what the formats share: matrices, stacked experts, side files
affine       integers into MLX's packed layout
safetensors  fp8  gptq  awq  mlx  gguf     one per format (gguf_* are parts of gguf)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlx_qwen3.errors import ConfigError, WeightsError
from mlx_qwen3.model.config import read_config
from mlx_qwen3_convert.readers.base import (
    AffineLayout,
    AffineRows,
    FloatType,
    Source,
    SourceTensor,
)
from mlx_qwen3_convert.readers.stored import Files

__all__ = [
    "AffineLayout",
    "AffineRows",
    "Files",
    "FloatType",
    "Source",
    "SourceTensor",
    "open_source",
]

Config = Mapping[str, Any]


def open_source(path: str | Path, files: Files | None = None) -> Source:
    """Open a model folder or a .gguf file, whichever format it is in. Only headers are read.

    files: how a folder's weight files are reached; None: they lie in it.

    Raises WeightsError for a format that is not supported and for missing or damaged files,
    ConfigError for a config.json that cannot be used.
    """
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise WeightsError(f"{path}: not found; expected a model folder or a .gguf file")
    only = _only_gguf(path)
    return _open_folder(path, files or Files()) if only is None else _open_file(only)


def _open_file(path: Path) -> Source:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise WeightsError(f"{path}: not a GGUF file; expected one, or a model folder")
    from mlx_qwen3_convert.readers.gguf import open_gguf

    return open_gguf(path)


def _only_gguf(folder: Path) -> Path | None:
    """The .gguf file of a folder that has nothing else to offer; a split one counts once."""
    if any(folder.glob("*.safetensors")):
        return None
    files = sorted(folder.glob("*.gguf"))
    whole = [file for file in files if "-of-" not in file.stem or "-00001-of-" in file.stem]
    if len(whole) > 1:
        raise WeightsError(
            f"{folder}: {len(whole)} .gguf files ({whole[0].name}, {whole[1].name}, ...); "
            "name the one to convert"
        )
    return next(iter(whole or files), None)


def _open_folder(folder: Path, files: Files) -> Source:
    config = read_config(folder)
    own = config.get("quantization")
    settings = config.get("quantization_config") or _separate_settings(folder) or {}
    if not isinstance(settings, Mapping) or not isinstance(own, Mapping | None):
        raise ConfigError(f"{folder}/config.json: the quantization is no object")
    method = settings.get("quant_method")
    if own or (settings and method is None and "bits" in settings):
        method = "mlx"  # mlx-lm writes its settings under both keys
    opener = _OPENERS.get(str(method or "none").lower())
    if opener is None:
        raise WeightsError(f"{folder}: {_refusal(str(method))}")
    return opener(folder, config, files, own or settings)


def _separate_settings(folder: Path) -> Config | None:
    """Early GPTQ and AWQ checkpoints keep them in a file of their own."""
    from mlx_qwen3_convert.readers.source import read_json

    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        settings = read_json(folder / name)
        if settings is not None:
            return {"quant_method": method, **settings}
    return None


def _refusal(method: str) -> str:
    supported = "fp8, gptq, awq, MLX or unquantized weights"
    return f"weights are in {method} format, which is not supported; expected {supported}"


def _safetensors(folder: Path, config: Config, files: Files, settings: Config) -> Source:
    from mlx_qwen3_convert.readers.safetensors import open_safetensors

    return open_safetensors(folder, config, files)


def _fp8(folder: Path, config: Config, files: Files, settings: Config) -> Source:
    from mlx_qwen3_convert.readers.fp8 import open_fp8

    return open_fp8(folder, config, files, settings)


def _gptq(folder: Path, config: Config, files: Files, settings: Config) -> Source:
    from mlx_qwen3_convert.readers.gptq import open_gptq

    return open_gptq(folder, config, files, settings)


def _awq(folder: Path, config: Config, files: Files, settings: Config) -> Source:
    from mlx_qwen3_convert.readers.awq import open_awq

    return open_awq(folder, config, files, settings)


def _mlx(folder: Path, config: Config, files: Files, settings: Config) -> Source:
    from mlx_qwen3_convert.readers.mlx import open_mlx

    return open_mlx(folder, config, files)


_OPENERS: dict[str, Callable[[Path, Config, Files, Config], Source]] = {
    "none": _safetensors,
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "mlx": _mlx,
}
