"""--no-prefix-cache and --prefix-cache-size: what a model is loaded with."""

from __future__ import annotations

import pytest
import typer

from mlx_qwen3.cli.options import prefix_cache
from mlx_qwen3.engine.settings import PrefixCache
from mlx_qwen3.errors import OptionError
from tests.cli.terminals import Command


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("0", 0),
        ("1000", 1000),
        ("500MB", 500 * 10**6),
        ("1.5gb", 1_500_000_000),
        ("2 GiB", 2 * 2**30),
        ("3T", 3 * 10**12),
    ],
)
def test_sizes(size: str, wanted: int) -> None:
    assert prefix_cache(False, size) == PrefixCache(disk_bytes=wanted)


def test_on_unless_told_otherwise() -> None:
    assert prefix_cache(False, None) is True
    assert prefix_cache(True, None) is False


@pytest.mark.parametrize("size", ["", "much", "-1", "8 bananas", "1e9"])
def test_no_size(size: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a size such as 500MB"):
        prefix_cache(False, size)


@pytest.mark.parametrize("subcommand", [("generate", "hi"), ("chat",)])
def test_wrong_usage(subcommand: tuple[str, ...], command: Command) -> None:
    run = command(*subcommand, "--no-prefix-cache", "--prefix-cache-size", "1GB")
    assert run.code == 2
    assert "leaves no use for --prefix-cache-size" in run.err


@pytest.mark.parametrize("name", ["memory_bytes", "disk_bytes", "min_disk_tokens"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_settings_are_checked(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"{name} is {value!r}; expected"):
        PrefixCache(**{name: value})  # type: ignore[arg-type]
