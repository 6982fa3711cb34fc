"""How a matrix is stored in the output, and the short words people write for it.

4        4-bit affine, groups of 64          4g32   the same in groups of 32
mxfp4 nvfp4 mxfp8   MLX's microscaling formats
float    not quantized, in the output's dtype
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.linear import Quantization

# None stands for a matrix left in floating point.
Format = Quantization | None

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
SCALED: Mapping[str, Quantization] = {
    "mxfp4": Quantization(32, 4, "mxfp4"),
    "nvfp4": Quantization(16, 4, "nvfp4"),
    "mxfp8": Quantization(32, 8, "mxfp8"),
}
_AFFINE_WORD = re.compile(r"(\d+)(?:bit)?(?:g(\d+))?")


def parse_format(word: str) -> Format:
    """The format a word stands for. Raises OptionError with what is possible."""
    if word in ("float", "none"):
        return None
    if word in SCALED:
        return SCALED[word]
    found = _AFFINE_WORD.fullmatch(word)
    if found is None:
        raise OptionError(
            f"{word!r} is no format; expected bits (4), bits and group (4g32), "
            f"{', '.join(SCALED)} or float"
        )
    return affine(int(found[1]), int(found[2] or DEFAULT_GROUP_SIZE))


def affine(bits: int, group_size: int) -> Quantization:
    """An affine format. Raises OptionError for bits or groups MLX has no kernels for."""
    if bits not in AFFINE_BITS:
        raise OptionError(f"bits is {bits}; expected one of {_words(AFFINE_BITS)}")
    if group_size not in GROUP_SIZES:
        raise OptionError(f"group size is {group_size}; expected one of {_words(GROUP_SIZES)}")
    return Quantization(group_size, bits)


def describe(stored: Format) -> str:
    """The word for a format: parse_format(describe(x)) == x."""
    if stored is None:
        return "float"
    if stored.mode != "affine":
        return stored.mode
    return f"{stored.bits}g{stored.group_size}"


def bits_per_weight(stored: Format, float_bits: int = 16) -> float:
    """Bits of storage per weight, scales and biases included."""
    if stored is None:
        return float_bits
    if stored.mode != "affine":
        return stored.bits + 8 / stored.group_size
    return stored.bits + 2 * float_bits / stored.group_size


def as_config(stored: Quantization) -> dict[str, Any]:
    """As config.json writes it."""
    return stored.arguments()


def _words(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
