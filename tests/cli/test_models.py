"""`mlx-qwen3 models`: the table, from a device and a cache that the test chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_qwen3 import hub, releases
from mlx_qwen3.cli import run
from mlx_qwen3.cli.models import Row, table
from mlx_qwen3.device import Blas, Device
from mlx_qwen3.hub import LocalModel

GB = 10**9


def device(limit: int, backend: str = "metal") -> Device:
    blas = Blas("Accelerate", "builtin")
    return Device(backend, "Apple M1", 2 * limit, limit, limit, blas)  # type: ignore[arg-type]


def local(repo: str, size: int = 5 * GB, complete: bool = True) -> LocalModel:
    return LocalModel(repo, Path("/cache") / repo, size, complete)


def rows(limit: int = 12 * GB, *here: LocalModel, backend: str = "metal") -> dict[str, Row]:
    found = table(device(limit, backend), {model.repo: model for model in here})
    return {row.name: row for row in found}


def test_every_release_is_listed_once() -> None:
    assert list(rows()) == [release.name for release in releases.releases()]


def test_what_is_here_has_its_size_on_disk() -> None:
    row = rows(12 * GB, local("Qwen/Qwen3-8B-MLX-4bit"))["8b"]
    assert (row.size, row.size_is_computed, row.complete) == (5 * GB, False, True)
    assert row.folder == "/cache/Qwen/Qwen3-8B-MLX-4bit"
    absent = rows()["8b"]
    assert absent.size_is_computed
    assert absent.folder is None


def test_half_a_download_is_not_here() -> None:
    row = rows(12 * GB, local("Qwen/Qwen3-8B-MLX-4bit", GB, complete=False))["8b"]
    assert not row.complete
    assert row.size_is_computed
    assert row.size > 4 * GB


def test_other_formats_show_when_they_are_here() -> None:
    assert "8b-fp8" not in rows()
    assert rows(12 * GB, local("Qwen/Qwen3-8B-FP8"))["8b-fp8"].repo == "Qwen/Qwen3-8B-FP8"


def test_a_model_of_no_table_comes_last() -> None:
    found = rows(12 * GB, local("someone/my-qwen3"))
    assert list(found)[-1] == "someone/my-qwen3"
    assert found["someone/my-qwen3"].parameters is None


def test_what_fits() -> None:
    found = rows(12 * GB)
    # 4-bit: 4.6 GB; 8.3 GB and 0.7 GB of context; 18 GB.
    assert [found[name].fits for name in ("8b", "14b", "32b")] == ["yes", "yes", "no"]
    assert rows(10 * GB)["14b"].fits == "tight"


def test_a_cpu_holds_16_bit_weights_in_32() -> None:
    assert rows(7 * GB)["1.7b-base"].fits == "yes"
    assert rows(7 * GB, backend="cpu")["1.7b-base"].fits == "no"


@pytest.fixture
def one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "list_local", lambda: [local("Qwen/Qwen3-8B-MLX-4bit")])
    monkeypatch.setattr(Device, "current", lambda: device(12 * GB))


@pytest.mark.usefixtures("one_here")
def test_the_printed_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "WEIGHTS", "SIZE", "HERE", "FITS", "REPOSITORY"]
    text = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert text["8b"] == ["8.2B", "5.0", "GB", "yes", "yes", "Qwen/Qwen3-8B-MLX-4bit"]
    assert text["32b"] == ["32.8B", "~18.4", "GB", "no", "Qwen/Qwen3-32B-MLX-4bit"]


@pytest.mark.usefixtures("one_here")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["limit"] == {"backend": "metal", "chip": "Apple M1", "bytes": 12 * GB}
    by_name = {model["name"]: model for model in found["models"]}
    assert by_name["30b-a3b"]["active_parameters"] < by_name["30b-a3b"]["parameters"]
    assert by_name["4b-instruct-2507"]["official"] is False
