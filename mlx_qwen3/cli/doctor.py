"""`mlx-qwen3 doctor`: what this machine is, and what would make it faster."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlx_qwen3.device import Device

PACKAGES = ("mlx-qwen3", "mlx", "mlx-lm", "huggingface-hub", "tokenizers")
LITTLE_DISK = 10e9  # bytes; the 4-bit 8B release takes 4.6 GB
LOADED = 0.5  # running programs per processor


@dataclass(frozen=True)
class System:
    """What the operating system says. nvidia: a driver is loaded. load: running programs."""

    name: str
    release: str
    machine: str
    rosetta: bool
    python: str
    python_path: str
    processors: int
    load: float
    nvidia: bool

    @classmethod
    def current(cls) -> System:
        mac = platform.system() == "Darwin"
        return cls(
            name="macOS" if mac else platform.system(),
            release=platform.mac_ver()[0] if mac else platform.release(),
            machine=platform.machine(),
            # The kernel names its own processor even to a translated process.
            rosetta=platform.machine() == "x86_64" and "ARM64" in platform.version(),
            python=platform.python_version(),
            python_path=sys.executable,
            processors=os.cpu_count() or 1,
            load=os.getloadavg()[0],
            nvidia=Path("/proc/driver/nvidia").exists(),
        )


@dataclass(frozen=True)
class Report:
    """Everything doctor found. device is None when mlx cannot be used; sizes in bytes."""

    system: System
    device: Device | None
    mlx_error: str | None
    versions: dict[str, str | None]
    cache: str
    cache_free: int
    models: int
    models_size: int
    prefixes: str = ""
    prefixes_size: int = 0


def doctor(
    clear_prefix_cache: Annotated[
        bool, typer.Option("--clear-prefix-cache", help="Remove the prompts kept on disk.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe this machine and say what would make it faster. Exit code 1: it cannot work."""
    from mlx_qwen3.cli.display import print_json

    if clear_prefix_cache:
        _clear_prefixes()
    report = examine()
    problems, hints = list(find_problems(report)), list(find_hints(report))
    if as_json:
        limit = report.device.memory_limit if report.device else None
        extra = {"memory_limit": limit, "problems": problems, "hints": hints}
        print_json(asdict(report) | extra)
    else:
        _print(report, problems, hints)
    if problems:
        raise typer.Exit(1)


def examine() -> Report:
    """Look at everything; nothing here changes anything."""
    from mlx_qwen3.engine.folder import BlockFolder, default_folder
    from mlx_qwen3.hub import cache_folder, list_local

    cache = cache_folder()
    local = list_local()
    device, mlx_error = _device()
    return Report(
        system=System.current(),
        device=device,
        mlx_error=mlx_error,
        versions={package: _version(package) for package in PACKAGES},
        cache=str(cache),
        cache_free=_free(cache),
        models=len(local),
        models_size=sum(model.size for model in local),
        prefixes=str(default_folder()),
        prefixes_size=BlockFolder(default_folder(), 0).size,
    )


def _clear_prefixes() -> None:
    from mlx_qwen3.cli.display import size_text
    from mlx_qwen3.cli.terminal import note
    from mlx_qwen3.engine.folder import BlockFolder, default_folder

    removed = BlockFolder(default_folder(), 0).clear()
    note(f"removed {size_text(removed)} of prompts from {default_folder()}")


def _device() -> tuple[Device | None, str | None]:
    from mlx_qwen3.device import Device

    try:
        return Device.current(), None
    except (ImportError, OSError, RuntimeError) as error:  # no wheel for this machine, no driver
        return None, str(error).splitlines()[0]


def _version(package: str) -> str | None:
    from importlib import metadata  # 10 ms, which every command would pay at start

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _free(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(place).free


def find_problems(report: Report) -> Iterator[str]:
    """What keeps models from running here at all."""
    if report.system.rosetta:
        yield (
            "This Python is an Intel one, translated by Rosetta: MLX needs an arm64 Python, "
            "from python.org or `brew install python`"
        )
    if report.mlx_error:
        yield f"MLX cannot be used: {report.mlx_error}"


def find_hints(report: Report) -> Iterator[str]:
    """What would make it faster or avoid trouble, the most useful first."""
    system, device = report.system, report.device
    if device and device.backend == "cpu" and system.nvidia:
        # Both packages carry mlx/lib/libmlx.so; whichever is installed last wins.
        yield (
            "There is an NVIDIA card, and MLX runs on the CPU: "
            "pip uninstall -y mlx-cpu mlx-cuda-13 && pip install 'mlx[cuda13]'"
        )
    if device and device.backend == "cpu" and device.blas.state == "missing":
        yield (
            "Install OpenBLAS, long prompts are read up to 20 times faster: "
            f"{openblas_command(Path('/'))}"
        )
    if system.name == "macOS" and _major(system.release) < 15:
        yield "macOS 15 or newer lets MLX keep a model in memory while other apps press on it"
    if system.load > system.processors * (1 + LOADED):
        yield (
            f"The machine is busy ({system.load:.1f} programs on {system.processors} "
            "processors): close some"
        )
    if report.cache_free < LITTLE_DISK:
        yield f"Little disk is free for models in {report.cache}: HF_HOME moves them elsewhere"


def openblas_command(root: Path) -> str:
    """How to install OpenBLAS on this Linux. root: where /usr and /etc are."""
    commands = {
        "apt-get": "sudo apt install libopenblas0-pthread",
        "dnf": "sudo dnf install openblas-threads",
        "pacman": "sudo pacman -S openblas",
        "zypper": "sudo zypper install libopenblas_pthreads0",
        "apk": "sudo apk add openblas",
    }
    for manager, command in commands.items():
        if any((root / folder / manager).exists() for folder in ("usr/bin", "sbin", "bin")):
            return command
    return "the package is usually called openblas"


def _major(release: str) -> int:
    first = release.split(".")[0]
    return int(first) if first.isdigit() else 0


def _print(report: Report, problems: list[str], hints: list[str]) -> None:
    styled = sys.stdout.isatty()
    for label, value in describe(report):
        print(f"\x1b[1m{label:<9}\x1b[0m" if styled else f"{label:<9}", value)
    for title, lines in (("It cannot work yet:", problems), ("Good to know:", hints)):
        if lines:
            print(f"\n{title}", *(f"  - {line}" for line in lines), sep="\n")
    if not problems and not hints:
        print("\nNothing to improve.")


def describe(report: Report) -> Iterator[tuple[str, str]]:
    """The report in words: (label, value)."""
    from mlx_qwen3.cli.display import memory_text, size_text

    system, device = report.system, report.device
    yield "system", f"{system.name} {system.release}, {system.machine}"
    if device:
        yield "backend", {"metal": "Metal", "cuda": "CUDA", "cpu": "CPU"}[device.backend]
        yield "chip", f"{device.chip}, {system.processors} processors"
        limit = memory_text(device.memory_limit)
        yield "memory", f"{memory_text(device.memory_size)}, of which models get {limit}"
        yield "dtype", device.default_dtype()
        yield (
            "BLAS",
            device.blas.name + (f" ({device.blas.library})" if device.blas.library else ""),
        )
    yield "python", f"{system.python}, {system.python_path}"
    yield (
        "packages",
        ", ".join(f"{name} {version or 'missing'}" for name, version in report.versions.items()),
    )
    yield "cache", f"{report.cache}, {size_text(report.cache_free)} free"
    yield "models", f"{report.models} here, {size_text(report.models_size)}"
    yield "prefixes", f"{report.prefixes}, {size_text(report.prefixes_size)} of prompts read before"
