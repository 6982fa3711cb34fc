"""What the outside may rely on: the names of the package, and that it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mlx_qwen3

ROOT = Path(__file__).parent.parent


def test_all_is_the_namespace() -> None:
    for name in mlx_qwen3.__all__:
        assert getattr(mlx_qwen3, name) is not None
    modules = {path.stem for path in Path(mlx_qwen3.__file__).parent.iterdir()}
    public = {name for name in vars(mlx_qwen3) if not name.startswith("_")}
    # Submodules appear as attributes once something imports them; so do typing's helpers.
    assert public - modules - {"Any", "TYPE_CHECKING"} <= set(mlx_qwen3.__all__)
    assert sorted(mlx_qwen3.__all__) == sorted(set(mlx_qwen3.__all__))
    assert "load" in mlx_qwen3.__all__
    assert set(dir(mlx_qwen3)) >= set(mlx_qwen3.__all__)


def test_no_export_shares_its_name_with_a_module() -> None:
    """With a lazy __getattr__ such a name would be the module once that is imported."""
    modules = {path.stem for path in Path(mlx_qwen3.__file__).parent.iterdir()}
    assert not modules & set(mlx_qwen3.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        mlx_qwen3.no_such_name  # noqa: B018


def test_a_star_import_gives_every_name() -> None:
    script = "from mlx_qwen3 import *; print(load.__name__, LLM.__name__)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "load LLM\n"


@pytest.mark.parametrize("package", ["mlx_qwen3", "convert/mlx_qwen3_convert"])
def test_packages_are_typed(package: str) -> None:
    if not (ROOT / package / "__init__.py").exists():
        pytest.skip(f"{package} does not exist yet")
    assert (ROOT / package / "py.typed").is_file()
