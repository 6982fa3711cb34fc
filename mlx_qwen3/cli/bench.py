"""`mlx-qwen3 bench`: how fast a model is here, and how that compares to mlx-lm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_qwen3.cli.options import Experts, MemoryBudget, size_in_bytes

if TYPE_CHECKING:
    from mlx_qwen3.bench.measure import Length
    from mlx_qwen3.bench.report import Report
    from mlx_qwen3.bench.runner import Runner
    from mlx_qwen3.bench.subject import Shape, Subject

OWN, PEER = "mlx-qwen3", "mlx-lm"
STARTUP_TOKENS = 8
# For --startup a model so small that its start is all start-up.
_DEFAULT_SHAPES: dict[bool, dict[str, Any]] = {
    False: {"shape": "0.6b", "bits": 4},
    True: {"shape": "0.6b", "bits": 16, "layers": 2, "hidden": 64},
}
SHAPE_OPTIONS = ("shape", "bits", "layers", "hidden", "vocab")


@dataclass(frozen=True)
class Options:
    """The command line. Raises typer.BadParameter for what does not go together."""

    model: str | None
    shape: str | None
    bits: int | None
    layers: int | None
    hidden: int | None
    vocab: int | None
    prompt: str
    tokens: int
    rounds: int
    dtype: str | None
    vs: str | None
    peer_seconds: float
    steps: bool
    startup: bool
    tokenizer: str | None
    plot: str | None
    experts: str | None
    memory_budget: str | None
    as_json: bool

    def __post_init__(self) -> None:
        said = next((said for wrong, said in self._problems() if wrong), None)
        if said is not None:
            raise typer.BadParameter(said)

    def _problems(self) -> Iterator[tuple[bool, str]]:
        """Whether something is wrong, and what to say of it then."""
        words = self.prompt.split(",")
        numbers = all(word.strip().isdecimal() and int(word) > 0 for word in words)
        yield not numbers, f"--prompt {self.prompt}: expected numbers of tokens, as in 128,512"
        shaped = next((name for name in SHAPE_OPTIONS if getattr(self, name) is not None), None)
        both = self.model is not None and shaped is not None
        yield both, f"--{shaped} is for random weights, not for --model; leave one of them out"
        yield self.vs not in (None, PEER), f"--vs {self.vs}: expected {PEER}"
        known = self.dtype in (None, "bfloat16", "float16", "float32")
        yield not known, f"--dtype {self.dtype}: expected bfloat16, float16 or float32"
        drawn = self.plot is None or self.plot.endswith(".svg")
        yield not drawn, f"--plot {self.plot}: pictures are SVG; expected a name that ends in .svg"
        place = Path(self.plot or ".").parent
        yield not place.is_dir(), f"--plot {self.plot}: there is no folder {place}"
        budgeted = self.experts is not None or self.memory_budget is not None
        inside = self.steps or self.plot is not None or self.dtype is not None or budgeted
        yield (
            self.startup and inside,
            "--startup times whole processes; leave --steps, --plot, --dtype, --experts and "
            "--memory-budget out",
        )
        streams = self.experts == "streamed" or self.memory_budget is not None
        yield (
            self.steps and streams,
            "--steps: streamed experts have no compiled step; leave it out",
        )
        copied = self.tokenizer is None or (self.startup and self.model is None)
        yield not copied, "--tokenizer goes with --startup and random weights; leave it out"

    @property
    def lengths(self) -> tuple[Length, ...]:
        """--prompt and --tokens, each prompt once."""
        from mlx_qwen3.bench.measure import Length

        prompts = dict.fromkeys(int(word) for word in self.prompt.split(","))
        return tuple(Length(prompt, self.tokens) for prompt in prompts)

    @property
    def random_shape(self) -> Shape:
        """What random weights are made for. Raises typer.BadParameter for impossible shapes."""
        from mlx_qwen3.bench.subject import Shape
        from mlx_qwen3.errors import ModelNotFoundError, OptionError

        given = {name: getattr(self, name) for name in SHAPE_OPTIONS}
        defaults = _DEFAULT_SHAPES[self.startup and set(given.values()) == {None}]
        shape = Shape(**{**defaults, **{k: v for k, v in given.items() if v is not None}})
        try:
            shape.check()
        except (ModelNotFoundError, OptionError) as exc:
            raise typer.BadParameter(str(exc)) from exc
        return shape


def bench(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Folder, short name or repo id; default: random weights.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights of a release's shape. [default: 0.6b]")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Of --shape: 2 to 8, 16 or 32. [default: 4]")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Of --shape: this many.")] = None,
    hidden: Annotated[
        int | None, typer.Option(min=1, help="Of --shape: this narrow, and all in proportion.")
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(min=1, help="Of --shape: tokens in the vocabulary.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="N,N,...", help="Tokens to read, one or more lengths.")
    ] = "128,512",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write behind each prompt.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 5,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; default: the device's.")
    ] = None,
    vs: Annotated[
        str | None, typer.Option(metavar="mlx-lm", help="Measure it in turn, with its defaults.")
    ] = None,
    peer_seconds: Annotated[
        float, typer.Option(min=1, help="Longest it may take per prompt and round.")
    ] = 60,
    steps: Annotated[
        bool, typer.Option("--steps", help="Compare the compiled step with the plain one.")
    ] = False,
    startup: Annotated[
        bool, typer.Option("--startup", help="Time whole processes, ours and mlx-lm's.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Of --startup with random weights.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.svg", help="Draw rates over prompt lengths.")
    ] = None,
    experts: Experts = None,
    memory_budget: MemoryBudget = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed, memory and kernel launches of a model.

    Figures are medians of rounds. With --vs and --steps the sides take turns on the same
    checkpoint, and ratios are those of each round.
    """
    options = Options(**context.params)
    with _open_subject(options) as subject:
        (_startup if startup else _measure)(subject, options)


@contextlib.contextmanager
def _open_subject(options: Options) -> Iterator[Subject]:
    from mlx_qwen3.bench.subject import existing, random_subject
    from mlx_qwen3.demo import demo_folder
    from mlx_qwen3.hub import resolve

    if options.model is not None:
        from mlx_qwen3.cli.display import download_bar

        with download_bar(options.model) as progress:
            folder = resolve(options.model, progress=progress)
        yield existing(options.model, folder)
        return
    tokenizer = Path(options.tokenizer) if options.tokenizer else demo_folder()
    with random_subject(options.random_shape, tokenizer if options.startup else None) as subject:
        yield subject


def _measure(subject: Subject, options: Options) -> None:
    from mlx_qwen3.bench.measure import Plan
    from mlx_qwen3.bench.plot import draw
    from mlx_qwen3.bench.report import as_dict, run
    from mlx_qwen3.cli.display import print_json
    from mlx_qwen3.cli.progress import work_bar

    plan = Plan(options.lengths, options.rounds, options.peer_seconds, subject.config)
    runners = _runners(subject, options)
    with work_bar("measuring") as progress:
        report = run(runners, plan, progress)
    if options.plot is not None:
        Path(options.plot).write_text(draw(report, subject.label), encoding="utf-8")
    if options.as_json:
        print_json({**_setting(subject), **as_dict(report)})
    else:
        _print(report, subject)


def _runners(subject: Subject, options: Options) -> list[Runner]:
    """In the order of their turns; ratios are to the last."""
    from mlx_qwen3.bench.peer import MlxLmRunner
    from mlx_qwen3.bench.runner import STEPS, OwnRunner
    from mlx_qwen3.model.residency import Residency

    # Random weights of 32 bits are there to be computed in 32 bits, as mlx-lm does.
    random_float32 = options.model is None and options.bits == 32
    dtype = options.dtype or ("float32" if random_float32 else None)
    forms = tuple(STEPS) if options.steps else (None,)
    budget = options.memory_budget and size_in_bytes(options.memory_budget, "--memory-budget")
    residency = Residency.of(options.experts, budget)
    runners: list[Runner] = [
        OwnRunner(subject.folder, dtype=dtype, step=form, residency=residency) for form in forms
    ]
    return [*runners, MlxLmRunner(subject.folder)] if options.vs else runners


def _startup(subject: Subject, options: Options) -> None:
    from mlx_qwen3.bench.startup import commands, time_processes
    from mlx_qwen3.bench.stats import Spread
    from mlx_qwen3.bench.table import ratio_text, seconds_text
    from mlx_qwen3.cli.display import print_json, print_table
    from mlx_qwen3.cli.progress import work_bar

    with work_bar("starting processes") as progress:
        sides = commands(subject.folder, STARTUP_TOKENS)
        seconds = time_processes(sides, options.rounds, progress)
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    ratio = Spread.of_ratios(*seconds.values())
    if options.as_json:
        found = {name: {"process_seconds": asdict(spread)} for name, spread in spreads.items()}
        ratios = [{"of": OWN, "to": PEER, "process_seconds": asdict(ratio)}]
        head = {**_setting(subject), "rounds": options.rounds, "tokens": STARTUP_TOKENS}
        return print_json({**head, "sides": found, "ratios": ratios})
    print(f"{subject.label}\n")
    cells = [seconds_text(spread) for spread in spreads.values()]
    print_table(
        ["FIGURE", *seconds, "RATIO"],
        [[f"whole process, {STARTUP_TOKENS} tokens", *cells, ratio_text(ratio)]],
    )
    return None


def _setting(subject: Subject) -> dict[str, Any]:
    """What was measured, and on what."""
    import importlib.metadata
    import os

    from mlx_qwen3.device import Device

    device, config = Device.current(), subject.config
    names = ("num_hidden_layers", "hidden_size", "vocab_size", "num_experts")
    packages = ("mlx-qwen3", "mlx", PEER)
    return {
        "model": subject.label,
        "config": {name: getattr(config, name) for name in names},
        "machine": {
            "backend": device.backend,
            "chip": device.chip,
            "processors": os.cpu_count(),
            "blas": device.blas.name,
        },
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _print(report: Report, subject: Subject) -> None:
    from mlx_qwen3.bench.table import reductions, table
    from mlx_qwen3.cli.display import print_table

    setting = _setting(subject)
    machine, versions, sizes = setting["machine"], setting["versions"], setting["config"]
    memory = report.bandwidth
    print(
        f"{subject.label}: {sizes['num_hidden_layers']} layers, hidden {sizes['hidden_size']}, "
        f"vocabulary {sizes['vocab_size']:,}\n"
        f"{machine['backend']}, {machine['chip']}, {machine['processors']} processors, "
        f"{machine['blas']}, mlx {versions['mlx']}\n"
        f"memory as MLX reads it: {memory.bytes_per_second / 1e9:.1f} GB/s ({memory.passed_by})\n"
    )
    *others, base = report.sides
    heads = [f"{side.name} ({side.weights.dtype})" for side in report.sides]
    ratios = [f"{side.name} / {base.name}" for side in others]
    print_table(["", *heads, *ratios], list(table(report)))
    print(f"\nMedian of {report.rounds} rounds (smallest to largest).")
    for line in reductions(report):
        print(line)
