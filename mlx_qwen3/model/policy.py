"""How a model is computed on this device: the one place that decides.

Metal and CUDA want 16-bit everywhere and fused elementwise kernels. mlx's CPU backend has slow
16-bit kernels and a quantized product that reads the weights once per row: float32, and from a
few rows on unpack and multiply dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen3.device import Backend, Device
from mlx_qwen3.errors import OptionError

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

_CPU_DENSE_FROM = 3  # rows; measured with OpenBLAS on two cores


@dataclass(frozen=True)
class ComputePolicy:
    """backend: where MLX computes.

    dtype: of activations, norms, unpacked weights, and scales of affine groups.
    dense_from: rows from which a packed matrix is unpacked and multiplied dense; None: never.
    compiled: whether elementwise chains are compiled into one kernel.
    """

    backend: Backend
    dtype: mx.Dtype
    dense_from: int | None = None
    compiled: bool = False

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
        return cls(
            backend=device.backend,
            dtype=DTYPES[name],
            dense_from=_CPU_DENSE_FROM if fast_dense else None,
            compiled=not on_cpu,
        )
