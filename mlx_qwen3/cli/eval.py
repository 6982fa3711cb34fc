"""`mlx-qwen3 eval`: how good checkpoints are, and how far from a reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlx_qwen3_convert.divergence import Prediction
    from mlx_qwen3_convert.evaluate import Score, Size

TOKENS = 8192


@dataclass(frozen=True)
class Row:
    """One checkpoint, or one recipe, and what was measured of it."""

    name: str
    size: Size
    score: Score


@dataclass(frozen=True)
class Job:
    """What to measure on. tokens: at most; dtype: None is the device's; file: the text's."""

    text: str
    tokens: int
    context: int
    dtype: str | None
    exact: bool
    calibration: str | None
    file: str | None = None


def eval(
    models: Annotated[list[str], typer.Argument(help="Folders, short names or repo ids.")],
    reference: Annotated[
        str | None, typer.Option(help="Also measure the KL divergence from this model.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure MODEL as if converted by it: 4bit, mixed-4.5, auto-4.5, a file; again."
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="A UTF-8 text; default: the bundled one.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="What --recipe auto-BITS measures on.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read at most.")] = TOKENS,
    context: Annotated[int, typer.Option(help="Tokens that are read together.")] = 512,
    exact: Annotated[
        bool, typer.Option("--exact", help="Over the whole vocabulary; the reference runs anew.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; default: the device's.")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write it into the model cards, README.md, of MODELS.")
    ] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.svg", help="Draw quality against size.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure perplexity, size, and divergence from a reference.

    Models are run a layer at a time, so that they need not fit in memory; a reference is run
    once and its likeliest tokens kept on disk. With --recipe, MODEL is loaded and is the
    reference itself; nothing is converted.
    """
    from mlx_qwen3.cli.display import print_json
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3_convert.calibration import EVALUATION, read_text

    if plot is not None and Path(plot).suffix != ".svg":
        raise OptionError(f"--plot {plot}: pictures are SVG; expected a name that ends in .svg")
    if recipe and (len(models) > 1 or reference is not None):
        raise OptionError("--recipe takes one MODEL, which is the reference; leave the rest out")
    if recipe and exact:
        raise OptionError("--exact runs the reference anew, which --recipe does not; leave one out")
    if card and recipe:
        raise OptionError("--card is of checkpoints, and --recipe makes none; leave one out")
    job = Job(read_text(text, EVALUATION), tokens, context, dtype, exact, calibration, text)
    cards = [_own_folder(model) for model in models] if card else []
    rows = _recipes(models[0], recipe, job) if recipe else _checkpoints(models, reference, job)
    against = models[0] if recipe else reference
    for folder, row in zip(cards, rows, strict=False):
        tell(folder, row, job, None if reference is None else _public_name(reference))
    if plot is not None:
        Path(plot).write_text(draw(rows), encoding="utf-8")
    if as_json:
        print_json(_as_json(rows, against, job))
    else:
        _print(rows, against)


def _checkpoints(models: Sequence[str], reference: str | None, job: Job) -> list[Row]:
    """Every model on the same tokens as the reference."""
    folders = [_locate(model) for model in models]
    base = None if reference is None else _locate(reference)
    for folder in folders if base is not None else ():
        _require_alike(folder, base, job)
    names = _short_names(models)
    return [measure(name, folder, base, job) for name, folder in zip(names, folders, strict=True)]


def measure(name: str, folder: Path, base: Path | None, job: Job) -> Row:
    """Run one checkpoint over the text. base: the reference, None: perplexity only."""
    from mlx_qwen3.cli.progress import work_bar
    from mlx_qwen3_convert.calibration import read_windows
    from mlx_qwen3_convert.evaluate import evaluate, measure_size

    windows = read_windows(folder, text=job.text, context=job.context, tokens=job.tokens)
    expected = None if base is None else _reference(base, windows, job)
    with work_bar(name) as progress:
        score = evaluate(folder, windows, expected, dtype=job.dtype, progress=progress)
    return Row(name, measure_size(folder), score)


def _reference(base: Path, windows: list[list[int]], job: Job) -> Iterable[Prediction]:
    from mlx_qwen3.cli.progress import work_bar
    from mlx_qwen3_convert.evaluate import exact_reference
    from mlx_qwen3_convert.reference import open_reference

    predict = exact_reference if job.exact else open_reference
    with work_bar("the reference") as progress:
        return predict(base, windows, dtype=job.dtype, progress=progress)


def _own_folder(model: str) -> Path:
    """A folder with a card that may be changed. Raises OptionError for what is no user's own."""
    from mlx_qwen3.errors import OptionError

    card = Path(model) / "README.md"
    if card.is_symlink() or not card.is_file():
        raise OptionError(f"--card: {card} is not there; expected a folder that convert made")
    return Path(model)


def tell(folder: Path, row: Row, job: Job, reference: str | None) -> str:
    """Write what was measured into a folder's card; returns the words."""
    from mlx_qwen3_convert.card import evaluation_section, with_evaluation

    text = "the text bundled with mlx-qwen3" if job.file is None else Path(job.file).name
    section = evaluation_section(row.score, text=text, context=job.context, reference=reference)
    card = folder / "README.md"
    card.write_text(with_evaluation(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    return section


def _public_name(model: str) -> str:
    """A model's name for a card, without the path on this machine."""
    from mlx_qwen3_convert.origin import name_of

    return name_of(model)


def _require_alike(folder: Path, base: Path | None, job: Job) -> None:
    """Predictions can be compared only of the same tokens. Raises OptionError."""
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3.model.config import ModelConfig, read_config
    from mlx_qwen3.text.tokenizer import Tokenizer

    assert base is not None
    sizes = [ModelConfig.from_dict(read_config(one)).vocab_size for one in (folder, base)]
    sample = job.text[:20_000]
    tokens = [Tokenizer.from_folder(one).encode(sample) for one in (folder, base)]
    if sizes[0] != sizes[1] or tokens[0] != tokens[1]:
        raise OptionError(
            f"{folder} and {base} do not share a vocabulary; a reference must read the same tokens"
        )


def _recipes(model: str, recipes: Sequence[str], job: Job) -> list[Row]:
    """The model as it is, and as it would be after a conversion by each recipe."""
    from mlx_qwen3.cli.progress import work_bar
    from mlx_qwen3_convert.auto import find_auto
    from mlx_qwen3_convert.compare import compare
    from mlx_qwen3_convert.mixed import find_any_recipe

    found = [find_auto(name) or find_any_recipe(name) for name in recipes]
    with work_bar("measuring recipes") as progress:
        compared = compare(
            _locate(model),
            found,
            text=job.text,
            context=job.context,
            tokens=job.tokens,
            calibration=job.calibration,
            dtype=job.dtype,
            progress=progress,
        )
    names = [_short_names([model])[0], *(recipe.name for recipe in found)]
    return [Row(name, *measured) for name, measured in zip(names, compared, strict=True)]


def _locate(model: str) -> Path:
    """The folder of a model, downloaded if need be."""
    from mlx_qwen3 import hub
    from mlx_qwen3.cli.display import download_bar

    with download_bar(model) as progress:
        return hub.resolve(model, progress=progress)


def _short_names(models: Sequence[str]) -> list[str]:
    """The last part of each path, unless two share it."""
    short = [Path(model).name if Path(model).is_dir() else model for model in models]
    return short if len(set(short)) == len(short) else list(models)


def draw(rows: Sequence[Row]) -> str:
    """The picture: divergence, or else perplexity, against size."""
    from mlx_qwen3_convert.plots import Point, quality_plot

    parameters = {round(row.size.nbytes / row.size.bits_per_weight) for row in rows}
    alike = max(parameters) - min(parameters) <= 1e-6 * max(parameters)
    apart = all(row.score.divergence is not None for row in rows)
    points = [
        Point(
            row.name,
            row.size.bits_per_weight if alike else row.size.nbytes / 1e9,
            row.score.divergence.mean if row.score.divergence else row.score.perplexity,
        )
        for row in rows
    ]
    return quality_plot(
        points,
        size="bits per weight" if alike else "GB",
        loss="KL divergence, nats per token" if apart else "Perplexity",
    )


def _print(rows: Sequence[Row], reference: str | None) -> None:
    from mlx_qwen3.cli.display import print_table

    header = ["MODEL", "SIZE", "BITS/WEIGHT", "PERPLEXITY"]
    if reference is not None:
        header += ["KL MEAN", "KL 99%", "KL MAX", "TOP-1"]
    print_table(header, [_cells(row) for row in rows])
    print(f"\n{_footnote(rows, reference)}")


def _footnote(rows: Sequence[Row], reference: str | None) -> str:
    said = f"{rows[0].score.tokens:,} tokens predicted."
    if reference is None:
        return said
    said += f" KL: nats per token from {reference}; TOP-1: same likeliest token."
    if all(row.score.divergence and row.score.divergence.exact for row in rows):
        return said
    return said + "\nA lower bound: rare tokens counted as one (--exact: each for itself)."


def _cells(row: Row) -> list[str]:
    from mlx_qwen3.cli.display import size_text

    score = row.score
    cells = [
        row.name,
        size_text(row.size.nbytes),
        f"{row.size.bits_per_weight:.2f}",
        f"{score.perplexity:.4g}" if score.perplexity < 1e4 else f"{score.perplexity:.2e}",
    ]
    if score.divergence is None:
        return cells
    apart = score.divergence
    figures = (f"{value:.4f}" for value in (apart.mean, apart.p99, apart.max))
    return [*cells, *figures, f"{apart.top1:.1%}"]


def _as_json(rows: Sequence[Row], reference: str | None, job: Job) -> dict[str, Any]:
    models = [as_json(row) for row in rows]
    return {"reference": reference, "context": job.context, "models": models}


def as_json(row: Row) -> dict[str, Any]:
    """A row as --json prints it."""
    return {
        "name": row.name,
        "bytes": row.size.nbytes,
        "bits_per_weight": row.size.bits_per_weight,
        "tokens": row.score.tokens,
        "perplexity": row.score.perplexity,
        "kl": None if row.score.divergence is None else asdict(row.score.divergence),
    }
