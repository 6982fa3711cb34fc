"""A part of a tensor, read from its file without the rest."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_qwen3.errors import PeerError
from mlx_qwen3.model.checkpoint import TensorInfo

# safetensors' names -> what numpy reads, and what MLX takes it for where numpy has no such type.
_DTYPES: dict[str, tuple[str, mx.Dtype | None]] = {
    "BF16": ("<u2", mx.bfloat16),
    "F16": ("<f2", None),
    "F32": ("<f4", None),
    "U8": ("|u1", None),
    "U32": ("<u4", None),
}


@dataclass(frozen=True)
class Cut:
    """Parts of a tensor along one axis.

    axis: -1 for columns, -2 for rows. spans: first and one past the last of each part, where the
    axis has `whole` in all: in heads, say, of which a tensor may have any number of rows each.
    """

    axis: int
    spans: tuple[tuple[int, int], ...]
    whole: int

    def of(self, name: str, info: TensorInfo) -> list[slice]:
        """The spans in the tensor's own numbers. Raises PeerError where they fall inside one."""
        size = info.shape[self.axis]
        if any(bound * size % self.whole for span in self.spans for bound in span):
            what = "columns" if self.axis == -1 else "rows"
            raise PeerError(
                f"tensor {name}: {size} {what} cannot be cut into {self.whole} equal parts (packed "
                "weights have a scale for each group); use fewer processes, --parallel pipeline, "
                "or a model packed in smaller groups"
            )
        return [
            slice(start * size // self.whole, stop * size // self.whole)
            for start, stop in self.spans
        ]


def read_part(name: str, info: TensorInfo, cut: Cut) -> mx.array:
    """The parts of a tensor that `cut` names, one behind the other, in the file's dtype.

    Only their bytes are touched. Raises PeerError for parts the tensor cannot be cut into.
    """
    stored, taken_for = _DTYPES[info.dtype]
    whole = np.memmap(info.file, stored, "r", offset=info.offset, shape=info.shape)
    rows = np.moveaxis(whole, cut.axis, 0)  # a view: nothing is read yet
    parts = [np.moveaxis(rows[span], 0, cut.axis) for span in cut.of(name, info)]
    part = np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, cut.axis)
    array = mx.array(part)
    return array if taken_for is None else array.view(taken_for)
