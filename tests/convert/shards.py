"""One safetensors file cut into many, wherever the bytes fall."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def split(folder: Path, out: Path, shards: int) -> Path:
    """A copy of a checkpoint whose one weight file is `shards` files and an index.

    Tensors keep their order and are shared out by bytes, so that what belongs together (a
    weight and its scales, the experts of a layer) lies in two files now and then.
    """
    shutil.copytree(folder, out)
    whole = out / "model.safetensors"
    tensors = list(_tensors(whole))
    share = sum(len(data) for _, _, data in tensors) / shards
    parts: list[list[tuple[str, dict[str, Any], bytes]]] = [[] for _ in range(shards)]
    size = 0
    for tensor in tensors:
        parts[min(int(size / share), shards - 1)].append(tensor)
        size += len(tensor[2])
    whole.unlink()
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        (out / name).write_bytes(_file(part))
        weight_map |= {tensor: name for tensor, _, _ in part}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def _tensors(file: Path) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        yield name, entry, raw[start + first : start + last]


def _file(tensors: list[tuple[str, dict[str, Any], bytes]]) -> bytes:
    header, data = {}, bytearray()
    for name, entry, content in tensors:
        header[name] = {**entry, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)
