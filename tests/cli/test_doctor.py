"""`mlx-qwen3 doctor`: what it says about machines that are not this one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_qwen3.cli import doctor, run
from mlx_qwen3.cli.doctor import Report, System
from mlx_qwen3.device import Blas, Device

GIB = 2**30
MAC = System("macOS", "15.1", "arm64", False, "3.12.1", "/usr/bin/python3", 12, 1.0, False)
LINUX = replace(MAC, name="Linux", release="6.1", machine="x86_64")
M2 = Device("metal", "Apple M2", 16 * GIB, 11 * GIB, 11 * GIB, Blas("Accelerate", "builtin"))
CPU = Device("cpu", "EPYC", 16 * GIB, 11 * GIB, None, Blas("OpenBLAS 0.3.21", "loaded", "lib.so"))
SLOW = replace(CPU, blas=Blas("reference BLAS", "missing"))


def report(system: System = MAC, device: Device | None = M2, **changes: object) -> Report:
    versions: dict[str, str | None] = {"mlx": "0.32.4", "mlx-lm": None}
    found = Report(system, device, None, versions, "/home/me/hub", 10**12, 2, 9 * 10**9)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_good_machine_has_nothing_to_improve() -> None:
    assert list(doctor.find_problems(report())) == []
    assert list(doctor.find_hints(report())) == []
    assert list(doctor.find_hints(report(LINUX, CPU))) == []


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (report(LINUX, SLOW), "Install OpenBLAS"),
        (report(replace(LINUX, nvidia=True), CPU), "pip install 'mlx[cuda13]'"),
        (report(replace(MAC, release="14.7")), "macOS 15"),
        (report(replace(MAC, load=30.0)), "The machine is busy (30.0 programs on 12"),
        (report(cache_free=10**9), "HF_HOME moves them elsewhere"),
    ],
)
def test_hints(found: Report, hint: str) -> None:
    (line,) = doctor.find_hints(found)
    assert hint in line


def test_an_intel_python_on_apple_silicon_is_a_problem() -> None:
    translated = replace(MAC, machine="x86_64", rosetta=True)
    found = report(translated, None, mlx_error="No module named 'mlx.core'")
    rosetta, missing = doctor.find_problems(found)
    assert "Rosetta" in rosetta
    assert "No module named 'mlx.core'" in missing


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "sudo apt install libopenblas0-pthread"),
        ("dnf", "sudo dnf install openblas-threads"),
        ("nothing", "the package is usually called openblas"),
    ],
)
def test_openblas_comes_from_this_systems_packages(
    tmp_path: Path, manager: str, command: str
) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin" / manager).touch()
    assert doctor.openblas_command(tmp_path) == command


def test_what_it_says_in_words() -> None:
    said = dict(doctor.describe(report()))
    assert said["system"] == "macOS 15.1, arm64"
    assert said["memory"] == "16.0 GiB, of which models get 11.0 GiB"
    assert said["dtype"] == "bfloat16"
    assert said["packages"] == "mlx 0.32.4, mlx-lm missing"
    kept = dict(doctor.describe(report(prefixes="/cache", prefixes_size=3 * 10**9)))["prefixes"]
    assert kept == "/cache, 3.0 GB of prompts read before"
    assert dict(doctor.describe(report(LINUX, CPU)))["BLAS"] == "OpenBLAS 0.3.21 (lib.so)"


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("system    ")
    assert err == ""


def test_json_of_a_machine_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: report(device=None, mlx_error="no wheel"))
    assert run(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == ["MLX cannot be used: no wheel"]
    assert found["device"] is None
    assert found["memory_limit"] is None
