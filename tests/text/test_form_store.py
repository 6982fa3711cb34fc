"""Forms on disk: found again, made again, never believed when they are damaged."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_qwen3.text import form_store
from mlx_qwen3.text.form import TokenizerForm
from mlx_qwen3.text.form_store import find_form


@pytest.fixture
def source(byte_level_folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    return file


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def forms(store: Path) -> list[Path]:
    return sorted(store.glob("*"))


def never(raw: bytes) -> None:
    raise AssertionError("compiled although it is stored")


def test_the_second_time_it_is_read(
    source: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = find_form(source, store)
    assert made is not None
    assert len(forms(store)) == 1
    assert store.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(TokenizerForm, "compile", never)
    found = find_form(source, store)
    assert found is not None
    assert found.to_bytes() == made.to_bytes()


def test_a_file_that_changes_gets_its_own(source: Path, store: Path) -> None:
    """Even one of the same size and time."""
    before, when = find_form(source, store), source.stat()
    source.write_bytes(source.read_bytes().replace(b"<think>", b"<brood>"))
    os.utime(source, ns=(when.st_atime_ns, when.st_mtime_ns))
    after = find_form(source, store)
    assert before is not None
    assert after is not None
    assert "<brood>" in {content for _, content, _ in after.settings.added}
    assert "<think>" in {content for _, content, _ in before.settings.added}
    assert len(forms(store)) == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(place: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": cut,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "another-version": flip(7),
    "of-another-file": flip(12),
    "a-bit-in-the-settings": flip(100),
    "a-bit-in-the-tables": flip(-1000),
    "a-link-to-nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_form_is_made_again(source: Path, store: Path, name: str) -> None:
    made = find_form(source, store)
    assert made is not None
    (file,) = forms(store)
    whole = file.read_bytes()
    DAMAGE[name](file)
    again = find_form(source, store)
    assert again is not None
    assert again.to_bytes() == made.to_bytes()
    assert file.read_bytes() == whole
    assert forms(store) == [file]


def test_every_flipped_bit_is_noticed(source: Path, store: Path) -> None:
    find_form(source, store)
    (file,) = forms(store)
    whole = file.read_bytes()
    digest = whole[8:40]
    assert form_store._read(file, digest) is not None
    padding = range(44, 48)
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        assert (form_store._read(file, digest) is None) == (place not in padding), place


def test_where_nothing_can_be_written(source: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert find_form(source, blocked / "store") is not None
    assert find_form(source, blocked) is not None


def test_a_user_without_a_home(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(kind: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(form_store, "storage_folder", homeless)
    assert find_form(source) is not None


def test_files_without_a_form_leave_nothing(source: Path, store: Path, tmp_path: Path) -> None:
    source.write_text("{}")
    assert find_form(source, store) is None
    assert find_form(tmp_path / "nowhere.json", store) is None
    assert not store.exists()


def test_the_least_recently_used_go(
    source: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_store, "_KEPT", 2)
    raw, hours = source.read_bytes(), 3_600
    find_form(source, store)
    (first,) = forms(store)
    left = store / "killed.part"
    left.write_bytes(b"half")
    for file in (first, left):
        os.utime(file, (time.time() - 48 * hours,) * 2)
    find_form(source, store)  # read, and so used today
    for number in range(3):
        for file in set(forms(store)) - {first}:
            os.utime(file, (time.time() - (10 - number) * hours,) * 2)
        if number == 0:
            os.utime(left, (time.time() - 48 * hours,) * 2)
        source.write_bytes(raw + b" " * (number + 1))
        find_form(source, store)
    assert first in forms(store)
    assert len(forms(store)) == 2
