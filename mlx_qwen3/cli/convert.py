"""`mlx-qwen3 convert`: any Qwen3 checkpoint to an MLX folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlx_qwen3.cli.making import Task


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder, .gguf file, short name, repo id, OWNER/NAME/FILE.gguf."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="mixed-4.5 (any bits), 3bit to 8bit, mxfp4, nvfp4, mxfp8, bf16, or a file."
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
    stream_from_hub: Annotated[
        bool,
        typer.Option(
            "--stream-from-hub", help="Download, convert and delete shard by shard; SRC is a repo."
        ),
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a repository.")
    ] = None,
    eval_: Annotated[
        bool, typer.Option("--eval", help="Measure the result; the model card tells.")
    ] = False,
    upload: Annotated[
        str | None, typer.Option(metavar="REPO", help="Publish the result as OWNER/NAME.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Let only you see what --upload creates.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Quantize a checkpoint, or import a quantized one exactly, in bounded memory.

    Without --recipe, --bits or --mode: what is quantized is imported as it is, everything else
    becomes 4-bit affine with groups of 64. An interrupted conversion goes on where it stopped;
    with --upload, a finished one is only uploaded.
    """
    from mlx_qwen3.cli.display import print_json
    from mlx_qwen3.cli.making import Task, make
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3_convert.job import Options
    from mlx_qwen3_convert.publish import require_upload

    options = Options(recipe, bits, group_size, mode, dtype, _rules(set_ or []), overwrite)
    task = Task(source, out, options, auto, learned, calibration, stream_from_hub, revision)
    task.check()
    if upload is not None:
        require_upload(upload, private=private)
    elif private:
        raise OptionError("--private is of --upload; give a repository there")
    finished = upload is not None and not overwrite and task.is_made()
    made = {"folder": out, "said": f"{out} is made already"} if finished else make(task)
    if eval_:
        made |= _evaluate(task)
    if upload is not None:
        made |= _upload(Path(out), upload, private=private)
    said = [made.pop("said"), *made.pop("measured", ()), *filter(None, [made.get("uploaded")])]
    if as_json:
        print_json(made)
    else:
        print("\n".join(said))


def _evaluate(task: Task) -> dict[str, Any]:
    """Measure what was made, unless its card tells already."""
    from mlx_qwen3.cli.eval import TOKENS, Job, as_json, measure, tell
    from mlx_qwen3_convert.calibration import EVALUATION, read_text
    from mlx_qwen3_convert.card import has_evaluation

    folder = Path(task.out)
    if has_evaluation((folder / "README.md").read_text(encoding="utf-8")):
        return {}
    job = Job(read_text(None, EVALUATION), TOKENS, 512, None, False, None)
    base = _reference(task)
    row = measure(folder.name, folder, base, job)
    section = tell(folder, row, job, None if base is None else "the source")
    return {"evaluation": as_json(row), "measured": [section]}


def _reference(task: Task) -> Path | None:
    """The source, where it is here and can be run as it is."""
    from mlx_qwen3.cli.making import locate
    from mlx_qwen3_convert.record import read_facts

    origin = str(read_facts(Path(task.out)).get("source_format"))
    if task.stream or not origin.startswith(("safetensors", "MLX")):
        return None
    return Path(locate(task.source, task.revision))


def _upload(folder: Path, repo: str, *, private: bool) -> dict[str, Any]:
    from mlx_qwen3_convert.publish import upload

    return {"uploaded": upload(folder, repo, private=private)}


def _rules(words: list[str]) -> dict[str, str]:
    from mlx_qwen3.errors import OptionError

    rules = {}
    for word in words:
        pattern, equals, stored = word.rpartition("=")
        if not equals or not pattern or not stored:
            raise OptionError(f"--set {word}: expected PATTERN=FORMAT, as in '*.down_proj=6'")
        rules[pattern] = stored
    return rules
