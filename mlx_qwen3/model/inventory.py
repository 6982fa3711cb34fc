"""What a checkpoint has for a model: each tensor is claimed once, and checked as it is.

inventory.claim("model.norm.weight", (1024,))    # where it lies; misshapen or absent: an error
inventory.refuse_unclaimed(ignored)              # nothing may be left over
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_qwen3.errors import WeightsError
from mlx_qwen3.model.checkpoint import Checkpoint, TensorInfo
from mlx_qwen3.model.linear import Quantization

# MLX's formats with 8-bit scales, by (bits, group_size); each mode has exactly one pair.
SCALED_MODES = {(4, 32): "mxfp4", (4, 16): "nvfp4", (8, 32): "mxfp8"}
_FLOATS = ("BF16", "F16", "F32")
_AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (16, 32, 64, 128)


class Inventory:
    """The tensors of a checkpoint by the names of the Hugging Face layout."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._left = set(checkpoint)

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint

    def claim(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """Where a tensor lies. Raises WeightsError when it is absent or misshapen."""
        info = self._checkpoint.info(name)
        if info.shape != shape:
            raise WeightsError(
                f"tensor {name} has shape {info.shape}; config.json makes it {shape}: "
                "they do not belong together"
            )
        self._left.discard(name)
        self._left.discard(name.removeprefix("model."))
        return info

    def claim_floats(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """As `claim`, for a tensor of floating-point numbers."""
        dtype = self._checkpoint.info(name).dtype
        if dtype not in _FLOATS:
            raise WeightsError(
                f"tensor {name} holds {dtype} numbers; expected {', '.join(_FLOATS)} or an MLX "
                "quantization with scales"
            )
        return self.claim(name, shape)

    def is_packed(self, name: str) -> bool:
        """Whether the matrix `name` is quantized."""
        weight = f"{name}.weight"
        return f"{name}.scales" in self._checkpoint or (
            weight in self._checkpoint and self._checkpoint.info(weight).dtype == "U32"
        )

    def quantization(self, name: str, in_dims: int) -> Quantization:
        """Read the format off the shapes: exact, where a config's per-layer table may be wrong.

        Raises WeightsError for shapes that are no MLX quantization.
        """
        weight = self._checkpoint.info(f"{name}.weight")
        scales = self._checkpoint.info(f"{name}.scales")
        group_size, rest = divmod(in_dims, scales.shape[-1])
        bits, part = divmod(weight.shape[-1] * 32, in_dims)
        fits = not rest and not part and group_size in _GROUP_SIZES
        if fits and scales.dtype == "U8" and (bits, group_size) in SCALED_MODES:
            return Quantization(group_size, bits, SCALED_MODES[bits, group_size])
        if fits and scales.dtype != "U8" and bits in _AFFINE_BITS:
            return Quantization(group_size, bits)
        raise WeightsError(
            f"tensor {name}.weight: shape {weight.shape} with scales {scales.shape} "
            f"({scales.dtype}) is no MLX quantization of {in_dims} inputs"
        )

    def refuse_unclaimed(self, ignored: Callable[[str], bool]) -> None:
        """Raise WeightsError if the checkpoint has tensors that no part of the model asked for."""
        extra = sorted(name for name in self._left if not ignored(name))
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise WeightsError(
                f"tensor {extra[0]}{more} is not part of this architecture; "
                "config.json and weights do not belong together"
            )
