"""How a model is computed on this device: the one place that decides.

Metal and CUDA want 16-bit everywhere and fused elementwise kernels. mlx's CPU backend has slow
16-bit kernels and a quantized product that reads the weights once per row: float32, and from a
few rows on unpack and multiply dense.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen3.device import Backend, Device
from mlx_qwen3.errors import OptionError

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

_CPU_DENSE_FROM = 3  # rows; measured with OpenBLAS on two cores
# Bytes of weights a layer reads per token. Below, a step on the CPU is mostly the building and
# starting of small operations, which a compiled step does twice as fast; at 8 MB (the 0.6B
# release, 4 bits) no difference was measured.
_CPU_HOST_BOUND = 4 << 20


@dataclass(frozen=True)
class ComputePolicy:
    """backend: where MLX computes.

    dtype: of activations, norms, unpacked weights, and scales of affine groups.
    dense_from: rows from which a packed matrix is unpacked and multiplied dense; None: never.
    compiled: whether elementwise chains are compiled into one kernel.
    compile_step_below: bytes of weights read per layer and token up to which a whole decode step
    is compiled; 0: never. A GPU's kernels take longer to run than to build, and an offset that is
    an array costs it one more.
    """

    backend: Backend
    dtype: mx.Dtype
    dense_from: int | None = None
    compiled: bool = False
    compile_step_below: int = 0

    @classmethod
    def for_device(
        cls, device: Device, *, checkpoint_dtype: str | None = None, dtype: str | None = None
    ) -> ComputePolicy:
        """The policy of a device; `dtype` overrides its choice. Raises OptionError for others."""
        name = dtype or device.default_dtype(checkpoint_dtype)
        if name not in DTYPES:
            raise OptionError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
        on_cpu = device.backend == "cpu"
        fast_dense = on_cpu and device.blas.fast
        # mx.compile on a CPU needs a C++ compiler, and float32 for what is written out.
        compiles = on_cpu and name == "float32" and shutil.which("g++") is not None
        return cls(
            backend=device.backend,
            dtype=DTYPES[name],
            dense_from=_CPU_DENSE_FROM if fast_dense else None,
            compiled=not on_cpu,
            compile_step_below=_CPU_HOST_BOUND if compiles else 0,
        )
