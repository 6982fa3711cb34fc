"""One conversion from start to end: plan, write, carry over, rename."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3_convert.ahead import ahead
from mlx_qwen3_convert.card import Making, model_card
from mlx_qwen3_convert.carry import output_config, output_generation_config
from mlx_qwen3_convert.formats import SCALED, parse_format
from mlx_qwen3_convert.mixed import AnyRecipe, Mixed, find_any_recipe
from mlx_qwen3_convert.origin import Origin, origin_of
from mlx_qwen3_convert.plan import (
    Action,
    Matrix,
    Plan,
    exact_dtype,
    make_plan,
    report,
    require_dtype,
)
from mlx_qwen3_convert.quantize import pack_block, read_piece
from mlx_qwen3_convert.readers import open_source
from mlx_qwen3_convert.readers.base import FloatType, Source
from mlx_qwen3_convert.recipes import DEFAULT, Recipe, Rule, find_recipe, uniform
from mlx_qwen3_convert.record import Record
from mlx_qwen3_convert.writer import Layout, PartialOutput, disk_errors, is_taken

# Called with (bytes written, bytes to write).
Progress = Callable[[int, int], None]
Piece = tuple[Matrix, int]


@dataclass(frozen=True)
class Options:
    """How to convert.

    recipe: a name, a file or a recipe; bits, group_size, mode: a uniform format instead. With
    none of them, a quantized source is imported exactly, any other gets the default recipe.
    rules: pattern -> format word, over the recipe's own. dtype: of scales and of what stays
    unquantized; None: the source's. asked: where a recipe was made for this model, what it was
    made from; it is this that a later run is compared with.
    """

    recipe: str | AnyRecipe | None = None
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    dtype: str | None = None
    rules: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    asked: str = ""

    def request(self) -> object:
        """All that decides the outcome, beside the source."""
        return self.asked or self.chosen(), self.dtype

    def chosen(self) -> AnyRecipe | None:
        """The recipe these options ask for. Raises OptionError where they contradict."""
        uniform_options = (self.bits, self.group_size, self.mode) != (None, None, None)
        if self.recipe is not None and uniform_options:
            raise OptionError("recipe and bits, group size or mode exclude each other; give one")
        recipe: AnyRecipe | None
        if isinstance(self.recipe, str):
            recipe = find_any_recipe(self.recipe)
        else:
            recipe = self._uniform() if self.recipe is None else self.recipe
        if self.rules:
            recipe = (recipe or find_recipe(DEFAULT)).with_rules(self.rules)
        return recipe

    def required_rules(self) -> list[Rule]:
        """The rules a user wrote: each must match something."""
        return [Rule(pattern, parse_format(word)) for pattern, word in self.rules.items()]

    def _uniform(self) -> Recipe | None:
        if self.mode not in (None, "affine"):
            return self._scaled(str(self.mode))
        if (self.bits, self.group_size, self.mode) == (None, None, None):
            return None
        return uniform(4 if self.bits is None else self.bits, self.group_size or 64)

    def _scaled(self, mode: str) -> Recipe:
        if mode not in SCALED:
            raise OptionError(f"mode is {mode!r}; expected affine or one of {', '.join(SCALED)}")
        only = SCALED[mode]
        for name, given in (("bits", self.bits), ("group_size", self.group_size)):
            if given not in (None, getattr(only, name)):
                raise OptionError(
                    f"{mode} has {name.replace('_', ' ')} {getattr(only, name)} only; leave it out"
                )
        return find_recipe(mode)


@dataclass(frozen=True)
class Result:
    """What a conversion did. nbytes: of the weights; actions: how many modules met each fate."""

    folder: Path
    source_format: str
    recipe: str | None
    dtype: FloatType
    nbytes: int
    bits_per_weight: float
    actions: Mapping[Action, int]
    modules: list[dict[str, object]]
    resumed_bytes: int = 0


class Supply(Protocol):
    """Brings the pieces of a source to where they can be read."""

    def room(self, pieces: Sequence[Piece]) -> int:
        """Bytes of the disk that this takes beside the output."""
        ...

    def batches(self, pieces: Sequence[Piece], total: int) -> Iterator[Sequence[Piece]]:
        """Every piece once, as they can be read. total: bytes of the whole output."""
        ...

    def written(self, done: int) -> None:
        """Told after every piece how many bytes of the output are done."""
        ...

    def done(self) -> None:
        """Nothing more is read."""
        ...


class Local:
    """The supply of a source that lies here: all of it at once."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._total = progress, 0

    def room(self, pieces: Sequence[Piece]) -> int:
        """None."""
        return 0

    def batches(self, pieces: Sequence[Piece], total: int) -> Iterator[Sequence[Piece]]:
        """One."""
        self._total = total
        yield pieces

    def written(self, done: int) -> None:
        """As `Supply.written`."""
        if self._progress is not None:
            self._progress(done, self._total)

    def done(self) -> None:
        """Nothing to tidy up."""


def convert(
    source: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    name: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Convert the checkpoint in `source` (a folder or .gguf file) into the folder `out`.

    name: what the model card calls the source; None: its repository, or the folder's name.
    Output is built beside `out` and renamed at the end; an interrupted run is resumed by calling
    this again. Raises OptionError (out exists, impossible options), ConfigError and WeightsError
    (naming the tensor), Qwen3Error (disk).
    """
    options = options or Options()
    require_free(Path(out), overwrite=options.overwrite)
    require_apart(Path(source), Path(out))
    options.chosen()  # contradictions are found before anything is opened
    opened = open_source(source)
    try:
        return run(
            opened,
            Path(out),
            options,
            origin=origin_of(source, name),
            identity=_identity(Path(source)),
            supply=Local(progress),
        )
    finally:
        opened.close()


def run(
    source: Source,
    target: Path,
    options: Options,
    *,
    origin: Origin,
    identity: object,
    supply: Supply,
) -> Result:
    """Convert an open source. identity: changes when the bytes of the source may have changed."""
    plan = _plan(source, options, options.chosen())
    facts = [identity, [[matrix.pieces, repr(matrix)] for matrix in plan.matrices]]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    job = _Job(source, plan, target, origin, supply)
    return job.run(digest, options)


def require_free(target: Path, *, overwrite: bool) -> None:
    """Raise OptionError when the output folder exists and may not be replaced."""
    if target.name in ("", ".."):
        raise OptionError(f"--out {target}: expected the name of a folder to make")
    if is_taken(target) and not overwrite:
        raise OptionError(f"{target} exists; choose another --out, or replace it with --overwrite")


def require_apart(source: Path, target: Path) -> None:
    """Refuse to replace what is read. Raises OptionError."""
    place = source.resolve()
    if target.resolve() in (place, *place.parents):
        raise OptionError(f"{target} is where the source lies; choose another --out")


def _plan(source: Source, options: Options, recipe: AnyRecipe | None) -> Plan:
    config = ModelConfig.from_dict(source.config)
    kept = exact_dtype(source) if recipe is None else None
    dtype = require_dtype(options.dtype or kept or config.torch_dtype or "bfloat16")
    if isinstance(recipe, Mixed):
        recipe = recipe.for_source(source, dtype)
    plan = make_plan(source, recipe=recipe, fallback=find_recipe(DEFAULT), dtype=dtype)
    if recipe is not None:
        paths = [matrix.path for matrix in plan.matrices if matrix.columns]
        recipe.check(paths, required=options.required_rules())
    return plan


class _Job:
    """The work itself, once it is clear what it is."""

    def __init__(
        self, source: Source, plan: Plan, target: Path, origin: Origin, supply: Supply
    ) -> None:
        self._source = source
        self._plan = plan
        self._target = target
        self._origin = origin
        self._supply = supply
        self._layout = Layout(plan)
        self._pieces = [(m, piece) for m in plan.matrices for piece in range(len(m.pieces))]

    def run(self, digest: str, options: Options) -> Result:
        room = self._supply.room(self._pieces)
        partial = PartialOutput(self._target, self._layout, digest, room=room)
        with disk_errors(self._target), partial as output:
            resumed = self._write_weights(output)
            self._write_side_files(output.folder)
            record = Record.of(self._origin, options.request(), self._facts())
            record.write(output.folder)
            self._supply.done()
            output.finish(overwrite=options.overwrite)
        return self._result(resumed)

    def _write_weights(self, output: PartialOutput) -> int:
        """Write every piece an earlier run did not; returns the bytes that it did."""
        todo = [one for one in self._pieces if not output.has(*one)]
        resumed = done = self._plan.nbytes - sum(_size(matrix) for matrix, _ in todo)
        for batch in self._supply.batches(todo, self._plan.nbytes):
            blocks = itertools.groupby(ahead(self._read(batch)), key=itemgetter(0))
            for (matrix, piece), group in blocks:
                output.write(matrix, piece, (pack_block(matrix, block) for _, block in group))
                done += _size(matrix)
                self._supply.written(done)
                mx.clear_cache()
        return resumed

    def _read(self, todo: Sequence[Piece]) -> Iterator[tuple[Piece, list[mx.array]]]:
        for matrix, piece in todo:
            for block in read_piece(self._source, matrix, piece):
                yield (matrix, piece), block

    def _write_side_files(self, folder: Path) -> None:
        self._source.write_side_files(folder)
        config = output_config(self._source.config, self._plan)
        _write_json(folder / "config.json", config)
        generation = output_generation_config(self._source)
        if generation is not None:
            _write_json(folder / "generation_config.json", generation)
        _write_json(folder / "model.safetensors.index.json", self._layout.index())
        making, licence = Making.of(self._plan), self._source.licence
        card = model_card(self._origin, self._source.format, making, licence)
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _facts(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "source_format": self._source.format,
            "recipe": None if plan.recipe is None else plan.recipe.name,
            "dtype": plan.dtype,
            "bits_per_weight": round(plan.bits_per_weight, 4),
            "tensors": report(plan),
        }

    def _result(self, resumed: int) -> Result:
        plan = self._plan
        actions: dict[Action, int] = {}
        for matrix in plan.matrices:
            actions[matrix.action] = actions.get(matrix.action, 0) + 1
        return Result(
            folder=self._target,
            source_format=self._source.format,
            recipe=None if plan.recipe is None else plan.recipe.name,
            dtype=plan.dtype,
            nbytes=plan.nbytes,
            bits_per_weight=plan.bits_per_weight,
            actions=actions,
            modules=report(plan),
            resumed_bytes=resumed,
        )


def _size(matrix: Matrix) -> int:
    """Bytes of one piece."""
    return matrix.nbytes // len(matrix.pieces)


def _identity(source: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a local source."""
    files = [source] if source.is_file() else sorted(source.iterdir())
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
