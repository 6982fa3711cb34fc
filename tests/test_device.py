"""device: BLAS before mlx, memory limits, dtype policy."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.device import Blas, Device, host_memory, load_blas

GIB = 2**30
BLAS = Blas("OpenBLAS 0.3.21", "loaded", "libopenblas.so.0")


def device(backend: Any, info: dict[str, str | int], active: int = 0) -> Device:
    return Device.from_info(backend, info, BLAS, active=active)


# --- BLAS ------------------------------------------------------------------------------------


class FakeLibrary:
    """What ctypes.CDLL gives for an OpenBLAS."""

    cblas_sgemm = object()

    class openblas_get_config:  # noqa: N801 - a C function's name
        def __new__(cls) -> bytes:  # type: ignore[misc]
            return b"OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH Haswell MAX_THREADS=64"


def test_macos_has_its_own_blas() -> None:
    def refuse(name: str, mode: int) -> Any:
        raise AssertionError("macOS must load nothing")

    found = load_blas("darwin", mlx_imported=False, open_library=refuse)
    assert (found.state, found.fast) == ("builtin", True)


def test_openblas_is_loaded_globally_under_the_first_name_that_exists() -> None:
    tried = []

    def open_library(name: str, mode: int) -> Any:
        tried.append((name, mode))
        if name != "libopenblas.so.0":
            raise OSError("not found")
        return FakeLibrary()

    found = load_blas("linux", mlx_imported=False, open_library=open_library)
    assert found == Blas("OpenBLAS 0.3.21", "loaded", "libopenblas.so.0")
    assert tried[-1] == ("libopenblas.so.0", ctypes.RTLD_GLOBAL)


def test_a_machine_without_openblas_is_told_so_quietly() -> None:
    def absent(name: str, mode: int) -> Any:
        raise OSError("not found")

    found = load_blas("linux", mlx_imported=False, open_library=absent)
    assert (found.state, found.fast) == ("missing", False)


def test_a_library_without_the_plain_symbols_is_passed_over() -> None:
    found = load_blas("linux", mlx_imported=False, open_library=lambda name, mode: object())
    assert found.state == "missing"


def test_loading_after_mlx_is_too_late() -> None:
    found = load_blas("linux", mlx_imported=True, open_library=lambda name, mode: FakeLibrary())
    assert found.state == "late"


def has_openblas() -> bool:
    return sys.platform == "linux" and load_blas("linux", mlx_imported=False).state == "loaded"


@pytest.mark.skipif(not has_openblas(), reason="needs Linux with OpenBLAS")
@pytest.mark.parametrize(
    "package", ["mlx_qwen3.model.transformer", "mlx_qwen3.generation.loop", "mlx_qwen3.llm"]
)
def test_packages_that_import_mlx_load_openblas_before_it(package: str) -> None:
    script = (
        "import sys\n"
        f"import {package}\n"
        "from mlx_qwen3 import device\n"
        "import mlx.core\n"
        "print(device.prepare().state)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "loaded\n"


# --- memory ----------------------------------------------------------------------------------

MEMINFO = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_memory_of_a_linux_machine(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/user\n"})
    assert host_memory(root) == (16 * GIB, 12 * GIB)


def test_a_version_2_group_above_this_one_limits_it(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/box/inner\n",
            "sys/fs/cgroup/box/inner/memory.max": "max\n",
            "sys/fs/cgroup/box/inner/memory.current": "1\n",
            "sys/fs/cgroup/box/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/box/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
        },
    )
    assert host_memory(root) == (4 * GIB, 3 * GIB)


def test_a_version_1_group_limits_it(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/box"
    root = write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu:/box\n4:memory:/box\n",
            f"{folder}/memory.limit_in_bytes": f"{2 * GIB}\n",
            f"{folder}/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{8 * GIB}\n",
        },
    )
    assert host_memory(root) == (2 * GIB, GIB)


def test_memory_without_proc(tmp_path: Path) -> None:
    total, available = host_memory(tmp_path)
    assert total == available > 0


# --- the device ------------------------------------------------------------------------------

M2_MAX: dict[str, str | int] = {
    "device_name": "Apple M2 Max",
    "memory_size": 64 * GIB,
    "max_recommended_working_set_size": 48 * GIB,
}


def test_metal_counts_against_the_recommended_working_set() -> None:
    mac = device("metal", M2_MAX, active=8 * GIB)
    assert (mac.chip, mac.memory_size) == ("Apple M2 Max", 64 * GIB)
    assert (mac.memory_limit, mac.available_memory) == (48 * GIB, 40 * GIB)


def test_metal_without_the_keys_guesses_from_the_memory() -> None:
    mac = device("metal", {"memory_size": 16 * GIB})
    assert mac.memory_limit == 12 * GIB
    assert mac.chip


def test_cuda_counts_the_free_memory_of_the_card() -> None:
    card = device("cuda", {"total_memory": 80 * GIB, "free_memory": 70 * GIB})
    assert (card.memory_size, card.memory_limit) == (80 * GIB, 70 * GIB)
    assert card.recommended_working_set is None


@pytest.mark.parametrize(
    ("needed", "expected"), [(40, "yes"), (41, "tight"), (48, "tight"), (49, "no")]
)
def test_fits_leaves_a_margin(needed: int, expected: str) -> None:
    verdict = device("metal", M2_MAX).fits(needed * GIB)
    assert verdict.fits == expected
    assert verdict.room == (48 - needed) * GIB


@pytest.mark.parametrize(
    ("backend", "checkpoint", "expected"),
    [
        ("cpu", "bfloat16", "float32"),
        ("cpu", "float16", "float32"),
        ("metal", "bfloat16", "bfloat16"),
        ("metal", "float16", "float16"),
        ("metal", "float32", "bfloat16"),
        ("cuda", None, "bfloat16"),
    ],
)
def test_dtype_policy(backend: Any, checkpoint: str | None, expected: str) -> None:
    assert device(backend, M2_MAX).default_dtype(checkpoint) == expected


def test_this_machine() -> None:
    current = Device.current()
    assert current.chip
    assert 0 < current.memory_limit <= current.memory_size


@pytest.mark.skipif(not Device.current().blas.library, reason="OpenBLAS is not loaded here")
def test_small_models_take_one_thread_of_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    blas = Device.current().blas
    threads = ctypes.CDLL(blas.library).openblas_get_num_threads
    blas.use_threads(1)
    assert threads() == 1
    blas.use_threads(None)
    assert threads() == os.cpu_count()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")  # somebody decided already
    blas.use_threads(1)
    assert threads() == os.cpu_count()
