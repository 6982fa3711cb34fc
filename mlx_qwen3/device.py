"""What this machine is: its backend, its memory, its BLAS, and what fits.

    prepare()          before mlx is first imported: fast matrix products on Linux
    Device.current()   backend, chip, memory; the dtype policy; "will it fit"

Nothing here imports mlx until Device.current() is called.
"""

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Backend = Literal["metal", "cuda", "cpu"]

# Fedora's libopenblas is the single-threaded build and its libopenblasp the threaded one;
# Debian's libopenblas is whichever build is installed. So the threaded name comes first.
OPENBLAS_NAMES = (
    "libopenblasp.so.0",
    "libopenblas.so.0",
    "libopenblas.so",
    "libopenblaso.so.0",
    f"{sys.prefix}/lib/libopenblas.so.0",  # conda
)

# Metal kills or stalls what goes near its recommended working set, and activations,
# caches and other apps need room too.
MARGIN = 0.15

# Version 1 control groups write "no limit" as a huge number of bytes.
NO_LIMIT = 2**60


@dataclass(frozen=True)
class Blas:
    """Which library computes float matrix products on the CPU.

    state: "loaded"   OpenBLAS was loaded ahead of mlx, which now uses it
           "builtin"  macOS: mlx is linked with Accelerate
           "missing"  no OpenBLAS on this machine: mlx's reference BLAS, 30-80 times slower
           "late"     mlx was imported first and is bound to its reference BLAS
    """

    name: str
    state: Literal["loaded", "builtin", "missing", "late"]
    library: str | None = None

    @property
    def fast(self) -> bool:
        return self.state in ("loaded", "builtin")

    def use_threads(self, count: int | None) -> None:
        """So many threads for each product; None: one for each processor.

        Of OpenBLAS only, and not where OPENBLAS_NUM_THREADS says what the user wants. Its threads
        wait for each other by spinning: products that take microseconds lose more than they win,
        and lose everything where other programs want the processors, too.
        """
        if self.library is None or "OPENBLAS_NUM_THREADS" in os.environ:
            return
        set_threads = getattr(ctypes.CDLL(self.library), "openblas_set_num_threads", None)
        if set_threads is not None:
            set_threads(count or os.cpu_count() or 1)


@functools.cache
def prepare() -> Blas:
    """Load a fast BLAS, once, before mlx is first imported.

    Call this at the top of every package whose modules import mlx: symbols bind when mlx
    loads, and nothing done later moves them. Silent when there is nothing to load.
    """
    return load_blas(sys.platform, mlx_imported="mlx.core" in sys.modules)


def load_blas(
    system: str, *, mlx_imported: bool, open_library: Callable[..., Any] = ctypes.CDLL
) -> Blas:
    """Put OpenBLAS into the process's global symbols, where mlx's Linux wheel finds it first.

    The wheel links the reference BLAS (a float32 512x1024x3072 product: 400 ms and more on two
    cores, 13 ms with OpenBLAS). system: sys.platform.
    """
    if system == "darwin":
        return Blas("Accelerate", "builtin")
    if mlx_imported:
        return Blas("reference BLAS", "late")
    for name in OPENBLAS_NAMES:
        try:
            library = open_library(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "cblas_sgemm"):  # 64-bit-integer builds carry other symbols
            return Blas(_openblas_version(library), "loaded", name)
    return Blas("reference BLAS", "missing")


def _openblas_version(library: Any) -> str:
    """ "OpenBLAS 0.3.21" from the library's own words."""
    try:
        get_config = library.openblas_get_config
    except AttributeError:
        return "OpenBLAS"
    get_config.restype = ctypes.c_char_p
    words = (get_config() or b"OpenBLAS").decode(errors="replace").split()
    return " ".join(words[:2])


@dataclass(frozen=True)
class Verdict:
    """Whether something fits in memory. All figures in bytes.

    fits: "yes"    it leaves the margin free
          "tight"  it fits, but into the margin: short prompts only, or close other apps
          "no"     it is larger than the limit
    """

    fits: Literal["yes", "tight", "no"]
    needed: int
    limit: int

    @property
    def room(self) -> int:
        """Bytes left under the limit; negative when it does not fit."""
        return self.limit - self.needed


@dataclass(frozen=True)
class Device:
    """This machine as mlx sees it.

    memory_size: bytes of memory the backend can address: unified memory on Metal, the card's
        on CUDA, on CPU the machine's or its control group's.
    available_memory: bytes free for a model now.
    recommended_working_set: bytes, Metal's own limit; None elsewhere.
    """

    backend: Backend
    chip: str
    memory_size: int
    available_memory: int
    recommended_working_set: int | None
    blas: Blas

    @classmethod
    def current(cls) -> "Device":
        """Ask mlx and the operating system; memory figures are those of this moment."""
        blas = prepare()
        import mlx.core as mx

        backend = _backend(mx)
        info: dict[str, str | int] = dict(mx.device_info(mx.default_device()))
        return cls.from_info(backend, info, blas, active=mx.get_active_memory())

    @classmethod
    def from_info(
        cls, backend: Backend, info: dict[str, str | int], blas: Blas, *, active: int = 0
    ) -> "Device":
        """info: mx.device_info(), whose keys differ by backend. active: bytes mlx holds now."""
        total, available = host_memory()
        recommended = None
        if backend == "metal":
            total = int(info.get("memory_size", total))
            recommended = int(info.get("max_recommended_working_set_size", total * 3 // 4))
            available = max(recommended - active, 0)
        elif backend == "cuda":
            total = int(info.get("total_memory", total))
            available = int(info.get("free_memory", total))
        chip = str(info.get("device_name") or platform.processor() or platform.machine())
        return cls(backend, chip, total, available, recommended, blas)

    @property
    def memory_limit(self) -> int:
        """Bytes a model, its caches and its activations may take together."""
        return self.recommended_working_set or self.available_memory

    def fits(self, needed: int) -> Verdict:
        """Whether `needed` bytes fit under memory_limit with MARGIN of it left free."""
        if needed > self.memory_limit:
            return Verdict("no", needed, self.memory_limit)
        comfortable = needed <= self.memory_limit * (1 - MARGIN)
        return Verdict("yes" if comfortable else "tight", needed, self.memory_limit)

    def default_dtype(self, checkpoint_dtype: str | None = None) -> str:
        """The dtype of activations, scales and norms: "bfloat16", "float16" or "float32".

        GPUs keep 16 bits (float16 checkpoints stay float16, all others run in bfloat16). mlx's
        CPU kernels for 16-bit quantized products are 10 to 50 times slower than float32.
        """
        if self.backend == "cpu":
            return "float32"
        return "float16" if checkpoint_dtype == "float16" else "bfloat16"


def _backend(mx: Any) -> Backend:
    """The backend of mlx's default device; mx is mlx.core."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """(total, available) bytes of this machine or of its control group, whichever is smaller.

    root: where /proc and /sys are. Without a /proc (macOS) all memory counts as available.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = _fields(root / "proc/meminfo")
    total = meminfo.get("MemTotal", total // 1024) * 1024
    available = meminfo.get("MemAvailable", total // 1024) * 1024
    for limit, used in _cgroup_limits(root):
        total = min(total, limit)
        available = min(available, max(limit - used, 0))
    return total, available


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each control group around this process that has a limit."""
    for folder, names in _cgroup_folders(root):
        limit, used = (_number(folder / name) for name in names)
        if limit is None or used is None or limit >= NO_LIMIT:
            continue
        stat = _fields(folder / "memory.stat")
        # File pages count as used but are given back on demand, as in MemAvailable.
        reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        yield limit, max(used - reclaimable, 0)


def _cgroup_folders(root: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Folders of this process's memory groups, innermost first, and their file names."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            yield base / part, names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """Lines of "name: 123 kB" or "name 123" as a table."""
    rows = (line.replace(":", " ").split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
