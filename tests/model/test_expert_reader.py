"""Pieces of files into memory: every byte, converted as MLX converts, and nothing half done."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import WeightsError
from mlx_qwen3.model.expert_layout import Piece
from mlx_qwen3.model.expert_reader import RAW, Array, ExpertReader, Read, fill, lots

CODES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}
HALVES = np.arange(1 << 16, dtype=np.uint16)
SINGLES = np.concatenate(
    [
        np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32),
        # Exactly between two bfloat16 values, beyond the largest, the smallest, and not a number.
        np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF7FFFFF, 1, 0x7F800001], np.uint32),
    ]
)


def write(path: Path, values: Array) -> Path:
    path.write_bytes(b"some header" + values.tobytes())
    return path


def piece(path: Path, values: Array, dtype: str) -> Piece:
    return Piece(path, len("some header"), values.nbytes, dtype)


@pytest.mark.parametrize("target", CODES)
@pytest.mark.parametrize("stored", CODES)
def test_conversions_are_mlx_s(stored: mx.Dtype, target: mx.Dtype, tmp_path: Path) -> None:
    raw = SINGLES if stored == mx.float32 else HALVES
    into = np.empty(raw.size, RAW[target])
    path = write(tmp_path / "file", raw)
    descriptor = os.open(path, os.O_RDONLY)
    fill(descriptor, Read(piece(path, raw, CODES[stored]), into, target))
    os.close(descriptor)
    expected = mx.array(raw).view(stored).astype(target)
    actual = mx.array(into).view(target)
    same = (actual == expected) | (mx.isnan(actual) & mx.isnan(expected))
    assert same.all().item()


def test_many_pieces_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 1 << 32, (40, 64 << 10), dtype=np.uint32)
    path = write(tmp_path / "file", values)
    into = np.zeros_like(values)
    start, size = len("some header"), values[0].nbytes
    reads = [
        Read(Piece(path, start + size * row, size, "U32"), into[row], mx.uint32)
        for row in range(len(values))
    ]
    assert len(lots(reads)) > 1
    ExpertReader().read(reads)
    assert np.array_equal(into, values)


def test_an_error_in_any_thread_is_raised_when_all_have_stopped(tmp_path: Path) -> None:
    good, absent = tmp_path / "good", tmp_path / "absent"
    size = 4 << 20
    good.write_bytes(bytes([7]) * size)
    into = np.zeros((2, size), np.uint8)
    reads = [
        Read(Piece(good, 0, size, "U8"), into[0], mx.uint8),
        Read(Piece(absent, 0, size, "U8"), into[1], mx.uint8),
    ]
    assert len(lots(reads)) == 2
    reader = ExpertReader()
    for order in (reads, reads[::-1]):
        into[:] = 0
        with pytest.raises(WeightsError, match="absent: cannot be read"):
            reader.read(order)
        assert (into[0] == 7).all()
    reader.read(reads[:1])  # and it goes on


def read_of(nbytes: int) -> Read:
    return Read(Piece(Path("file"), 0, nbytes, "U8"), np.empty(0, np.uint8), mx.uint8)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100], [1]),
        ([100] * 50, [50]),  # little work stays in one thread
        ([1 << 20] * 8, [1] * 8),
        ([1 << 20] * 32, [4] * 8),
        ([64 << 20, 100, 100], [1, 2]),
    ],
)
def test_lots(sizes: list[int], expected: list[int]) -> None:
    reads = [read_of(size) for size in sizes]
    parts = lots(reads)
    assert [len(part) for part in parts] == expected
    assert [read for part in parts for read in part] == reads
