"""Imports point down only: the house of ARCHITECTURE.md, checked on the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlx_qwen3"
CONVERTER = ROOT / "convert" / "mlx_qwen3_convert"

# From the top down. A part may import what stands below it and what stands in its own line
# only if that is itself; "server" and "agent" do not know each other.
LEVELS = (
    {"cli", "__main__"},
    {"server", "agent", "bench"},
    {"service"},
    {"llm"},
    {"engine"},
    {"generation"},
    {"model", "text"},
    {"hub"},
    {"device", "releases", "demo", "svg", "storage", "sizes", "heartbeat"},
    {"config", "errors", "_version"},
)
# The package's own __init__ hands everything out, lazily; nobody inside may go through it.
OPEN = {"__init__"}
CONVERTER_MAY_USE = {"config", "hub", "releases", "text", "model", "generation", "errors"}
CONVERTER_MAY_USE |= {"device", "svg"}


def level(part: str) -> int:
    for number, parts in enumerate(LEVELS):
        if part in parts:
            return number
    raise AssertionError(f"mlx_qwen3/{part} has no place in the house: add it to LEVELS")


def part_of(file: Path) -> str:
    """The part of the house a file belongs to: its package, or its own name."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_modules(source: str, package: str) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in a file, lazy ones and those for types included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(
                    [*parents[: len(parents) - node.level + 1], *([base] if base else [])]
                )
            yield base, node.lineno
            # `from mlx_qwen3 import hub` imports a module that only the name tells.
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def imported_parts(source: str, package: str = "mlx_qwen3") -> Iterator[tuple[str, int]]:
    """(part of mlx_qwen3, line) of every import in a file."""
    for module, line in imported_modules(source, package):
        names = module.split(".")
        if names[0] == "mlx_qwen3" and len(names) > 1 and is_part(names[1]):
            yield names[1], line


def is_part(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def upward(part: str, source: str, package: str = "mlx_qwen3") -> list[str]:
    """The imports of a file that do not point down."""
    return [
        f"line {line}: {part} imports {other}"
        for other, line in imported_parts(source, package)
        if other != part and level(other) <= level(part)
    ]


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def package_of(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).parent.parts)


@pytest.mark.parametrize("file", python_files(PACKAGE), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    part = part_of(file)
    if part not in OPEN:
        assert upward(part, file.read_text(), package_of(file, ROOT)) == []


def test_the_runtime_does_not_know_the_converter() -> None:
    users = [
        file.relative_to(PACKAGE)
        for file in python_files(PACKAGE)
        for module, _ in imported_modules(file.read_text(), package_of(file, ROOT))
        if module.split(".")[0] == "mlx_qwen3_convert"
    ]
    assert {file.parts[0] for file in users} <= {"cli"}


def test_the_converter_uses_only_what_it_may() -> None:
    used = {
        part
        for file in python_files(CONVERTER)
        if file.name != "__main__.py"  # python -m is a second door to the command line
        for part, _ in imported_parts(file.read_text(), package_of(file, CONVERTER.parent))
    }
    assert used <= CONVERTER_MAY_USE


def test_packages_that_import_mlx_prepare_the_device_first() -> None:
    """Without it MLX binds to its slow BLAS on Linux, and nothing can change that later."""
    users = {
        part_of(file)
        for file in python_files(PACKAGE)
        for statement in ast.parse(file.read_text()).body  # not those inside functions
        if isinstance(statement, ast.Import)
        and any(alias.name.split(".")[0] == "mlx" for alias in statement.names)
    }
    assert users
    for folder in (*(PACKAGE / part for part in users), CONVERTER):
        assert "device.prepare()" in (folder / "__init__.py").read_text(), folder


@pytest.mark.parametrize(
    ("part", "source", "caught"),
    [
        ("model", "from mlx_qwen3.generation.loop import generate", True),
        ("model", "from mlx_qwen3 import llm", True),
        ("model", "def f():\n    import mlx_qwen3.cli.chat", True),
        ("model", "from mlx_qwen3.text.tokenizer import Tokenizer", True),
        ("generation", "from mlx_qwen3.model.cache import Cache", False),
        ("hub", "from mlx_qwen3 import releases", False),
        ("text", "from ..generation import loop", True),
        ("text", "from . import parser", False),
    ],
)
def test_this_test_catches_what_it_should(part: str, source: str, caught: bool) -> None:
    assert bool(upward(part, source, f"mlx_qwen3.{part}")) == caught
