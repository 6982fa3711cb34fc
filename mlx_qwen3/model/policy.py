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
from mlx_qwen3.errors import DeviceError, OptionError

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

_CPU_DENSE_FROM = 3  # rows; measured with OpenBLAS on two cores
# Bytes of weights a layer reads per token. Below, a step on the CPU is mostly the building and
# starting of small operations, which a compiled step does twice as fast; at 8 MB (the 0.6B
# release, 4 bits) no difference was measured.
_CPU_HOST_BOUND = 4 << 20
_CPU_SCORE_BYTES = 32 << 20  # up to ten operations are under way, each with its own


@dataclass(frozen=True)
class ComputePolicy:
    """backend: where MLX computes.

    dtype: of activations, norms, unpacked weights, and scales of affine groups.
    dense_from: rows from which a packed matrix is unpacked and multiplied dense; None: never.
    compiled: whether elementwise chains are compiled into one kernel.
    compile_step_below: bytes of weights read per layer and token up to which a whole decode step
    is compiled; 0: never. A GPU's kernels take longer to run than to build, and an offset that is
    an array costs it one more.
    score_bytes: of attention scores held at once; None: the device's kernels hold none.
    """

    backend: Backend
    dtype: mx.Dtype
    dense_from: int | None = None
    compiled: bool = False
    compile_step_below: int = 0
    score_bytes: int | None = None

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
            score_bytes=_CPU_SCORE_BYTES if on_cpu else None,
        )

    def compiles_step(self, layer_bytes: float, *, streamed: bool) -> bool:
        """Whether a model that reads so many bytes per layer and token decodes in a compiled step.

        streamed: its experts are, which takes a wait for the router in each layer.
        """
        return not streamed and layer_bytes <= self.compile_step_below

    def refuse_experts(self, dtype: mx.Dtype, *, scaled: bool) -> None:
        """Raise DeviceError for experts that MLX cannot multiply here, as it says only later.

        dtype: of their weight. scaled: whether they have a global_scale.
        """
        if self.backend == "cpu" and scaled:
            raise DeviceError(
                "experts with a global_scale (nvfp4) do not run on MLX's CPU backend; "
                "use another quantization"
            )
        if self.backend == "cpu" and dtype in (mx.bfloat16, mx.float16):
            raise DeviceError(
                "unquantized experts run on MLX's CPU backend in float32 only; "
                "leave dtype out, or set it to float32"
            )


@dataclass(frozen=True)
class BatchPolicy:
    """How many sequences share a step of one token each, and still say what each says alone.

    max_rows: more are served in turns.
    """

    max_rows: int

    @classmethod
    def for_device(cls, device: Device) -> BatchPolicy:
        """On Metal and CUDA as many rows as the vector kernels of packed matrices take on every
        chip (from MLX's source, not measured); a CPU takes rows one by one in any case."""
        return cls(32 if device.backend == "cpu" else 6)


@dataclass(frozen=True)
class BurstPolicy:
    """How this device computes a few tokens of one sequence at once, to verify a proposal.

    max_rows: tokens at once; below 2: never.
    tolerance: how far a difference of two logits may be from what steps of one token give
    (0: the same kernels, and so the same bits). packed_tolerance: the same with a packed cache,
    where rounding may move a key to the next level.
    costs: (rows, cost in steps of one token) to expect before it is measured, by rows.
    """

    max_rows: int
    costs: tuple[tuple[int, float], ...]
    tolerance: float = 0.0
    packed_tolerance: float = 0.0

    @classmethod
    def for_device(cls, device: Device, dtype: mx.Dtype, queries_per_kv_head: int) -> BurstPolicy:
        """Bursts of this device; from MLX's source, and not measured, where it is a GPU.

        Metal's vector kernels take each row as they take one, for up to 8 queries and 32 query
        heads of a KV head. CUDA builds a graph for every key length of more than one query: never.
        """
        if device.backend == "metal":
            return cls(min(8, 32 // queries_per_kv_head), costs=((1, 1.0), (8, 2.0)))
        if device.backend == "cuda":
            return cls(0, costs=((1, 1.0),))
        noise = _CPU_NOISE if dtype == mx.float32 else _CPU_PACKED_NOISE
        costs = _CPU_DENSE_COSTS if device.blas.fast else _CPU_ROW_COSTS
        return cls(32, costs, noise, max(noise, _CPU_PACKED_NOISE))

    def expected_cost(self, rows: int) -> float:
        """Before it is measured, in steps of one token."""
        below, above = self.costs[0], self.costs[-1]
        for entry in self.costs:
            if entry[0] <= rows:
                below = entry
            else:
                above = entry
                break
        span = above[0] - below[0]
        share = (rows - below[0]) / span if span > 0 else 0.0
        return below[1] + share * (above[1] - below[1])


# Largest differences seen between the logits (up to 20) of bursts and of steps, on the demo and
# the tests' models: 1e-4, and 2e-2 with packed caches; a margin of ten above that.
_CPU_NOISE, _CPU_PACKED_NOISE = 1e-3, 0.2
# From three rows on matrices are unpacked, once for all rows; without a fast BLAS each row counts.
_CPU_DENSE_COSTS = ((1, 1.0), (2, 1.6), (3, 3.5), (16, 4.5), (32, 5.5))
_CPU_ROW_COSTS = ((1, 1.0), (32, 24.0))
