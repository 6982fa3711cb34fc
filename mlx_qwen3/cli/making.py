"""The ways in which `convert` makes a model: planned, measured, learned or streamed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_qwen3_convert.auto import Choice, Measured
    from mlx_qwen3_convert.job import Options, Result
    from mlx_qwen3_convert.learned import Learning


@dataclass(frozen=True)
class Task:
    """What is to be made of what. auto: bits per weight; learned: a method of mlx-lm.

    calibration: the text of both. stream: shard by shard from the hub. revision: of a repository.
    """

    source: str
    out: str
    options: Options
    auto: float | None = None
    learned: str | None = None
    calibration: str | None = None
    stream: bool = False
    revision: str | None = None

    def check(self) -> None:
        """Raise OptionError for options that contradict, or would be ignored."""
        from mlx_qwen3.errors import OptionError

        if self.auto is not None and self.learned is not None:
            raise OptionError("--auto and --learned exclude each other; give one")
        if self.stream and (self.auto is not None or self.learned is not None):
            raise OptionError(
                "--stream-from-hub never has the whole model, which --auto and --learned need"
            )
        if self.calibration is not None and self.auto is None and self.learned is None:
            raise OptionError("--calibration is read by --auto and --learned; give one of them")
        if self.revision is not None and Path(self.source).exists():
            raise OptionError(f"--revision is of a repository, and {self.source} is a path")
        if self.auto is not None and _formats(self.options):
            raise OptionError(
                "--auto chooses every format; leave recipe, bits, group size, mode out"
            )
        if self.learned is not None:
            self._check_learned()

    def _check_learned(self) -> None:
        from mlx_qwen3.errors import OptionError

        options = self.options
        recipe = options.recipe if self.learned != "dwq" else None
        if options.rules or options.mode or recipe:
            raise OptionError(
                f"--learned {self.learned} makes affine formats of --bits and --group-size"
            )

    def is_made(self) -> bool:
        """Whether --out is what these options made in an earlier run."""
        from mlx_qwen3_convert.origin import name_of
        from mlx_qwen3_convert.record import read_facts, request_digest

        facts = read_facts(Path(self.out))
        # A branch may have moved since: only a commit is known to be the same.
        same = self.revision in (None, facts.get("revision"))
        return same and facts.get("request") == request_digest(name_of(self.source), self._asked())

    def _asked(self) -> object:
        if self.learned is not None:
            return _learning(self).request(self.learned)
        return _asking(self).request()


def make(task: Task) -> dict[str, Any]:
    """Make it; returns what --json prints and, as "said", what a person reads."""
    if task.learned is not None:
        return _learn(task)
    if task.stream:
        return _as_json(_stream(task))
    folder = locate(task.source, task.revision)
    reasons = None if task.auto is None else _measure(task, folder)
    return _as_json(_convert(task, folder, reasons))


def locate(source: str, revision: str | None = None) -> str:
    """A file or folder as it is; anything else is downloaded, or found where it was."""
    from mlx_qwen3 import hub
    from mlx_qwen3.cli.display import download_bar

    if Path(source).exists():
        return source
    gguf = hub.GGUF_FILE.fullmatch(source)
    with download_bar(source) as progress:
        if gguf is not None:
            return str(hub.resolve_gguf(*gguf.groups(), revision=revision, progress=progress))
        return str(hub.resolve(source, revision=revision, progress=progress))


def _convert(task: Task, folder: str, reasons: tuple[Choice, Measured] | None) -> Result:
    from mlx_qwen3.cli.display import download_bar
    from mlx_qwen3_convert.job import convert
    from mlx_qwen3_convert.origin import name_of
    from mlx_qwen3_convert.plots import write_reasons

    options = _asking(task)
    if reasons is not None:
        options = replace(options, recipe=reasons[0].recipe)
    with download_bar("converting") as progress:
        result = convert(folder, task.out, options, name=name_of(task.source), progress=progress)
    if reasons is not None:
        write_reasons(*reasons, result.folder)
    return result


def _stream(task: Task) -> Result:
    from mlx_qwen3.cli.display import download_bar
    from mlx_qwen3_convert.streaming import convert_from_hub

    with download_bar("downloading and converting") as progress:
        return convert_from_hub(
            task.source, task.out, task.options, revision=task.revision, progress=progress
        )


def _measure(task: Task, folder: str) -> tuple[Choice, Measured]:
    """What --auto decides, and why."""
    from mlx_qwen3.cli.progress import work_bar
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3_convert.auto import auto_recipe
    from mlx_qwen3_convert.job import require_free

    assert task.auto is not None
    require_free(Path(task.out), overwrite=task.options.overwrite)  # before minutes of measuring
    if Path(folder).is_file():
        raise OptionError(f"--auto {folder}: measuring needs a folder; convert to bf16 first")
    with work_bar("measuring") as progress:
        return auto_recipe(
            folder,
            task.auto,
            calibration=task.calibration,
            dtype=task.options.dtype,
            progress=progress,
        )


def _learn(task: Task) -> dict[str, Any]:
    from mlx_qwen3_convert.job import require_free
    from mlx_qwen3_convert.learned import learned
    from mlx_qwen3_convert.origin import name_of

    assert task.learned is not None
    require_free(Path(task.out), overwrite=task.options.overwrite)
    folder = locate(task.source, task.revision)
    made = learned(task.learned, folder, task.out, _learning(task), name=name_of(task.source))
    return {"folder": str(made), "learned": task.learned, "said": str(made)}


def _learning(task: Task) -> Learning:
    from mlx_qwen3_convert.learned import Learning

    options = task.options
    return Learning(
        bits=options.bits or 4,
        group_size=options.group_size or 64,
        recipe=options.recipe if isinstance(options.recipe, str) else None,
        calibration=task.calibration,
        dtype=options.dtype,
        overwrite=options.overwrite,
    )


def _asking(task: Task) -> Options:
    """The options, with what a recipe will be made from."""
    if task.auto is None:
        return task.options
    rules = sorted(task.options.rules.items())
    return replace(task.options, asked=f"auto {task.auto:g} {task.calibration} {rules}")


def _formats(options: Options) -> bool:
    return bool(options.recipe or options.bits or options.group_size or options.mode)


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
        "said": "\n".join(_describe(result)),
    }


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
