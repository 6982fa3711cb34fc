"""Sizes as people write them."""

import re

from mlx_qwen3.errors import OptionError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "500MB", "1.5 GiB" or "1000". Raises OptionError for what is no size."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"{text!r} is no size; expected one such as 500MB, 8GB")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
