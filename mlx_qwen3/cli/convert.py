"""`mlx-qwen3 convert`: any Qwen3 checkpoint to an MLX folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlx_qwen3_convert.auto import Choice, Measured
    from mlx_qwen3_convert.job import Options, Result


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder, .gguf file, short name or repo id.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="mixed-4.5 (any bits), 4bit, 8bit, mxfp4, nvfp4, mxfp8, bf16, or a file."
        ),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per weight, every matrix alike.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights per scale: 32, 64, 128.")] = None,
    mode: Annotated[str | None, typer.Option(help="affine, mxfp4, nvfp4 or mxfp8.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATTERN=FORMAT", help="'layers.*.mlp.down_proj=6'; again."),
    ] = None,
    auto: Annotated[
        float | None, typer.Option(metavar="BITS", help="Measure, and spend these bits per weight.")
    ] = None,
    learned: Annotated[
        str | None, typer.Option(metavar="METHOD", help="mlx-lm's gptq, awq or dwq.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text for --auto and --learned.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32, of scales and norms.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Quantize a checkpoint, or import a quantized one exactly, in bounded memory.

    Without --recipe, --bits or --mode: what is quantized is imported as it is, everything else
    becomes 4-bit affine with groups of 64. An interrupted conversion goes on where it stopped.
    """
    from dataclasses import replace

    from mlx_qwen3.cli.display import download_bar, print_json
    from mlx_qwen3_convert.job import Options
    from mlx_qwen3_convert.job import convert as run
    from mlx_qwen3_convert.plots import write_reasons

    _refuse_contradictions(auto, learned, calibration)
    options = Options(recipe, bits, group_size, mode, dtype, _rules(set_ or []), overwrite)
    folder = _locate(source)
    if learned is not None:
        made = _learn(learned, folder, out, options, calibration)
        if as_json:
            print_json({"folder": made, "learned": learned})
        else:
            print(made)
        return
    reasons = None if auto is None else _measure(folder, auto, out, options, calibration)
    if reasons is not None:
        options = replace(options, recipe=reasons[0].recipe)
    with download_bar("converting") as progress:
        result = run(folder, out, options, name=source, progress=progress)
    if reasons is not None:
        write_reasons(*reasons, result.folder)
    if as_json:
        print_json(_as_json(result))
    else:
        print("\n".join(_describe(result)))


def _refuse_contradictions(
    auto: float | None, learned: str | None, calibration: str | None
) -> None:
    from mlx_qwen3.errors import OptionError

    if auto is not None and learned is not None:
        raise OptionError("--auto and --learned exclude each other; give one")
    if calibration is not None and auto is None and learned is None:
        raise OptionError("--calibration is read by --auto and --learned; give one of them")


def _measure(
    folder: str, bits_per_weight: float, out: str, options: Options, calibration: str | None
) -> tuple[Choice, Measured]:
    """What --auto decides, and why."""
    from pathlib import Path

    from mlx_qwen3.cli.progress import work_bar
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3_convert.auto import auto_recipe
    from mlx_qwen3_convert.job import require_free

    if options.recipe or options.bits or options.group_size or options.mode:
        raise OptionError("--auto chooses every format; leave recipe, bits, group size, mode out")
    require_free(Path(out), overwrite=options.overwrite)  # before minutes of measuring
    if Path(folder).is_file():
        raise OptionError(f"--auto {folder}: measuring needs a folder; convert to bf16 first")
    with work_bar("measuring") as progress:
        return auto_recipe(
            folder,
            bits_per_weight,
            calibration=calibration,
            dtype=options.dtype,
            progress=progress,
        )


def _learn(method: str, folder: str, out: str, options: Options, calibration: str | None) -> str:
    """What --learned writes, and where."""
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3_convert.learned import Learning
    from mlx_qwen3_convert.learned import learned as run

    if options.rules or options.mode or (options.recipe and method != "dwq"):
        raise OptionError(f"--learned {method} makes affine formats of --bits and --group-size")
    how = Learning(
        bits=options.bits or 4,
        group_size=options.group_size or 64,
        recipe=options.recipe if isinstance(options.recipe, str) else None,
        calibration=calibration,
        dtype=options.dtype,
        overwrite=options.overwrite,
    )
    return str(run(method, folder, out, how))


def _locate(source: str) -> str:
    """A file or folder as it is; anything else is downloaded, or found where it was."""
    from pathlib import Path

    from mlx_qwen3 import hub
    from mlx_qwen3.cli.display import download_bar

    if Path(source).exists():
        return source
    with download_bar(source) as progress:
        return str(hub.resolve(source, progress=progress))


def _rules(words: list[str]) -> dict[str, str]:
    from mlx_qwen3.errors import OptionError

    rules = {}
    for word in words:
        pattern, equals, stored = word.rpartition("=")
        if not equals or not pattern or not stored:
            raise OptionError(f"--set {word}: expected PATTERN=FORMAT, as in '*.down_proj=6'")
        rules[pattern] = stored
    return rules


def _describe(result: Result) -> list[str]:
    from mlx_qwen3.cli.display import size_text

    fates = {
        "exact": "repacked exactly",
        "quantized": "quantized",
        "requantized": "quantized again (no exact form)",
        "copied": "kept in floating point",
    }
    said = [f"{fates[action]}: {count}" for action, count in result.actions.items()]
    return [
        f"{result.folder}  {size_text(result.nbytes)}, "
        f"{result.bits_per_weight:.2f} bits per weight",
        f"from {result.source_format}; tensors {', '.join(said)}",
    ]


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "source_format": result.source_format,
        "recipe": result.recipe,
        "dtype": result.dtype,
        "bytes": result.nbytes,
        "bits_per_weight": result.bits_per_weight,
        "actions": dict(result.actions),
        "resumed_bytes": result.resumed_bytes,
        "tensors": result.modules,
    }
