"""Blocks on disk: read back bit for bit, refused when anything about them is wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3.engine import folder as folder_module
from mlx_qwen3.engine.blocks import BLOCK_TOKENS, HostView, Layout
from mlx_qwen3.engine.folder import BlockFolder
from mlx_qwen3.engine.identity import model_digest
from mlx_qwen3.model.checkpoint import read_header
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import load_model
from tests.checkpoints import make_tensors, write_checkpoint, write_weights
from tests.engine.turns import columns, disk_store, files, open_turn, same_columns, take_turn, text
from tests.model.tiny_models import TINY_MODELS

Models = Callable[[str], Transformer]
PROMPT = text(3 * BLOCK_TOKENS + 40)
NEXT = PROMPT[: 3 * BLOCK_TOKENS] + text(50, 1)


@pytest.fixture
def model(tiny_model: Models) -> Transformer:
    return tiny_model("gqa-1")  # its head_dim can be packed


@pytest.fixture
def written(model: Transformer, tmp_path: Path) -> Path:
    """A folder with the three whole blocks of PROMPT."""
    store = disk_store(model, tmp_path / "prefixes")
    take_turn(model, PROMPT, store, count=1)
    assert store.flush()
    assert len(files(tmp_path / "prefixes")) == 3
    return tmp_path / "prefixes"


def in_order(folder: Path) -> list[Path]:
    """The blocks of one sequence from its beginning: later ones count as used earlier."""
    return sorted(files(folder), key=lambda path: -path.stat().st_mtime_ns)


# --- there and back


@pytest.mark.parametrize("kv_bits", [None, 4, 8])
def test_a_new_store_reads_the_same_bits(
    kv_bits: int | None, model: Transformer, tmp_path: Path
) -> None:
    store = disk_store(model, tmp_path)
    one = take_turn(model, PROMPT, store, kv_bits=kv_bits)
    store.flush()
    two = open_turn(model, NEXT, disk_store(model, tmp_path), kv_bits=kv_bits)
    assert two.cached == 3 * BLOCK_TOKENS
    assert same_columns(one.cache, two.cache, 3 * BLOCK_TOKENS)
    assert [two.loop.next().token_id for _ in range(8)] == take_turn(
        model, NEXT, kv_bits=kv_bits
    ).token_ids


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_columns_too(dtype: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(tiny_folder("dense"), dtype=dtype)
    store = disk_store(model, tmp_path)
    one = take_turn(model, PROMPT, store)
    store.flush()
    two = open_turn(model, NEXT, disk_store(model, tmp_path))
    assert two.cached == 3 * BLOCK_TOKENS
    assert columns(two.cache, 1)[0].dtype == getattr(mx, dtype)
    assert same_columns(one.cache, two.cache, 3 * BLOCK_TOKENS)


@pytest.mark.parametrize("name", ["sliding", "sliding-moe"])
def test_layers_that_slide_are_kept_until_they_forget(
    name: str, tiny_model: Models, tmp_path: Path
) -> None:
    """Their window is shorter than a block here: nothing may come back."""
    model = tiny_model(name)
    store = disk_store(model, tmp_path)
    take_turn(model, PROMPT, store)
    store.flush()
    done = take_turn(model, NEXT, disk_store(model, tmp_path))
    assert (done.cached, files(tmp_path)) == (0, [])
    assert done.token_ids == take_turn(model, NEXT).token_ids


def test_a_rotating_cache_is_read_back_only_up_to_its_size(
    model: Transformer, tmp_path: Path
) -> None:
    store = disk_store(model, tmp_path)
    take_turn(model, PROMPT[:500], store, max_kv_size=600)
    store.flush()
    prompt = PROMPT[:400] + text(400, 2)
    done = take_turn(model, prompt, disk_store(model, tmp_path), max_kv_size=600)
    assert done.cached == BLOCK_TOKENS
    assert done.token_ids == take_turn(model, prompt, max_kv_size=600).token_ids


def test_a_file_is_safetensors_that_others_read(written: Path) -> None:
    path = in_order(written)[1]
    assert path.stat().st_size == sum(i.nbytes for i in read_header(path).values()) + min(
        info.offset for info in read_header(path).values()
    )
    tensors: Any = mx.load(str(path))
    assert tensors["token_ids"].tolist() == PROMPT[BLOCK_TOKENS : 2 * BLOCK_TOKENS]
    assert tensors["layers.0.0"].shape == (3, BLOCK_TOKENS, 32)


def test_only_new_blocks_are_written(written: Path, model: Transformer) -> None:
    before = {path: path.stat().st_ino for path in files(written)}
    store = disk_store(model, written)
    done = take_turn(model, PROMPT + text(2 * BLOCK_TOKENS, 1), store)
    store.flush()
    assert done.cached == 3 * BLOCK_TOKENS
    after = {path: path.stat().st_ino for path in files(written)}
    assert len(after) == 5
    assert before.items() <= after.items()


def test_memory_is_preferred_where_it_has_as_much(written: Path, model: Transformer) -> None:
    store = disk_store(model, written)
    one = take_turn(model, PROMPT, store)
    two = take_turn(model, PROMPT, store)
    assert two.cache is one.cache
    assert two.cached > one.cached == 3 * BLOCK_TOKENS


def test_what_comes_from_disk_is_written_to_in_place(written: Path, model: Transformer) -> None:
    turn = open_turn(model, NEXT, disk_store(model, written))
    turn.loop.next()
    assert turn.cached
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    turn.loop.next()
    mx.synchronize()
    assert mx.get_peak_memory() - before < turn.cache.nbytes // 8


def test_short_prompts_stay_off_the_disk(model: Transformer, tmp_path: Path) -> None:
    store = disk_store(model, tmp_path, min_tokens=600)
    take_turn(model, text(590), store, count=4)
    store.flush()
    assert files(tmp_path) == []
    take_turn(model, text(600), store, count=4)
    store.flush()
    assert len(files(tmp_path)) == 2
    assert take_turn(model, text(590), disk_store(model, tmp_path, min_tokens=600)).cached == 0


def test_only_what_will_last_is_written(model: Transformer, tmp_path: Path) -> None:
    store = disk_store(model, tmp_path)
    turn = open_turn(model, PROMPT, store)
    store.give_back(turn.cache, PROMPT, lasting=2 * BLOCK_TOKENS)
    store.flush()
    assert len(files(tmp_path)) == 2


# --- damaged and foreign blocks


def _flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return damage


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _of_another_model(path: Path) -> None:
    """Well formed, with the right checksum, of other tokens."""
    shutil.copy(in_order(path.parents[1])[0], path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "length field": _flip(0),
    "header": _flip(0.0001),
    "data": _flip(0.5),
    "last data": _flip(0.9999),
    "checksum": _flip(1),
    "cut": _cut,
    "longer": _lengthen,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("not a block"),
    "foreign": _of_another_model,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_bad_block_is_removed_and_written_again(
    damage: Callable[[Path], None], written: Path, model: Transformer
) -> None:
    good = {path.name: path.read_bytes() for path in files(written)}
    bad = in_order(written)[1]
    damage(bad)
    store = disk_store(model, written)
    turn = open_turn(model, NEXT, store)
    assert turn.cached == BLOCK_TOKENS  # what comes before it is still good
    assert not bad.exists()
    tokens = [turn.loop.next().token_id for _ in range(8)]
    assert tokens == take_turn(model, NEXT).token_ids
    store.give_back(turn.cache, NEXT, lasting=len(NEXT))
    store.flush()
    assert sorted(path.name for path in files(written)) == sorted(good)
    assert bad.read_bytes()[:2000] == good[bad.name][:2000]
    assert open_turn(model, NEXT, disk_store(model, written)).cached == 3 * BLOCK_TOKENS


def test_a_folder_in_a_blocks_place(written: Path, model: Transformer) -> None:
    bad = in_order(written)[0]
    bad.unlink()
    bad.mkdir()
    assert take_turn(model, NEXT, disk_store(model, written)).cached == 0


def test_strangers_in_the_folder_are_left_alone(written: Path, model: Transformer) -> None:
    stranger = written / "notes.txt"
    stranger.write_text("mine")
    (written / "empty").mkdir()
    blocks = BlockFolder(written, 0)
    blocks.shrink()
    blocks.clear()
    assert files(written) == [stranger]


# --- whose blocks they are


def test_blocks_of_another_model_are_not_found(written: Path, model: Transformer) -> None:
    assert open_turn(model, NEXT, disk_store(model, written, identity="another")).cached == 0


def test_other_kinds_of_caches_are_not_found(written: Path, model: Transformer) -> None:
    for kind in ({"kv_bits": 8}, {"max_kv_size": 4000}):
        assert open_turn(model, NEXT, disk_store(model, written), **kind).cached == 0
    assert open_turn(model, NEXT, disk_store(model, written)).cached == 3 * BLOCK_TOKENS


def test_the_digest_tells_models_apart(tmp_path: Path) -> None:
    """Also those of equal shape, size and age."""
    config = TINY_MODELS["dense"].config
    folders = [write_checkpoint(tmp_path / str(seed), config, seed) for seed in (0, 0, 1)]
    for path in files(tmp_path):
        os.utime(path, (1, 1))
    one, same, other = (model_digest(folder) for folder in folders)
    assert one == same != other
    assert len(one) == 40
    (folders[0] / "config.json").write_text(json.dumps(config | {"rope_theta": 5e6}))
    assert model_digest(folders[0]) != one
    tensors = make_tensors(config, 0)
    tensors["model.layers.1.mlp.up_proj.weight"] *= 2  # as an adapter merged into one matrix
    write_weights(folders[1], tensors)
    os.utime(folders[1] / "model.safetensors", (1, 1))
    assert model_digest(folders[1]) != same


def test_a_folder_that_went_away_is_no_reason_to_fail(
    model: Transformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = disk_store(model, tmp_path)
    assert store._disk is not None
    store._disk._ask_identity = lambda: model_digest(tmp_path / "gone")
    with caplog.at_level(logging.INFO, "mlx_qwen3"):
        take_turn(model, PROMPT, store)
    assert take_turn(model, NEXT, store).cached == 3 * BLOCK_TOKENS  # out of memory
    assert len(caplog.records) == 1
    assert files(tmp_path) == []


# --- limits


def test_the_least_used_go_first_and_ends_before_beginnings(
    model: Transformer, tmp_path: Path
) -> None:
    store = disk_store(model, tmp_path)
    for seed in (1, 2):
        take_turn(model, text(3 * BLOCK_TOKENS, seed), store, count=1)
        store.flush()
    size = files(tmp_path)[0].stat().st_size
    again = disk_store(model, tmp_path, limit=7 * size)
    assert open_turn(model, text(3 * BLOCK_TOKENS, 1) + text(30), again).cached == 768
    take_turn(model, text(3 * BLOCK_TOKENS, 3), again, count=1)
    again.flush()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 7 * size

    def kept(seed: int) -> int:
        fresh = disk_store(model, tmp_path)
        return open_turn(model, text(3 * BLOCK_TOKENS, seed) + text(30), fresh).cached

    assert [kept(seed) for seed in (1, 2, 3)] == [768, 0, 768]


def test_a_limit_below_a_block_keeps_nothing(model: Transformer, tmp_path: Path) -> None:
    store = disk_store(model, tmp_path, limit=1000)
    take_turn(model, PROMPT, store)
    assert store.flush()
    assert files(tmp_path) == []


def test_a_full_disk_is_left_to_others(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage)
    store = disk_store(model, tmp_path)
    take_turn(model, PROMPT, store)
    assert store.flush()
    assert files(tmp_path) == []


def test_a_disk_that_fills_up_midway_leaves_nothing(
    model: Transformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    caplog.set_level(logging.INFO, "mlx_qwen3")
    monkeypatch.setattr("mlx_qwen3.engine.blocks._write", full)
    store = disk_store(model, tmp_path)
    one = take_turn(model, PROMPT, store)
    assert store.flush()
    assert files(tmp_path) == []
    assert "No space left on device" in caplog.text
    assert take_turn(model, PROMPT, store).token_ids == one.token_ids


def test_a_place_that_cannot_be_written_to(
    model: Transformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_qwen3")
    (tmp_path / "file").write_text("in the way")
    store = disk_store(model, tmp_path / "file")
    take_turn(model, PROMPT, store)
    assert store.flush()
    assert "prefixes are not kept" in caplog.text


def test_nobody_else_may_read_them(written: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files(written)}
    assert modes == {0o600}
    assert stat.S_IMODE(written.stat().st_mode) == 0o700
    assert stat.S_IMODE(files(written)[0].parent.stat().st_mode) == 0o700


def test_files_nobody_finished_are_removed_after_a_while(written: Path, model: Transformer) -> None:
    young, old = (files(written)[0].with_name(f"{name}.writing") for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half a block")
    os.utime(old, (time.time() - 7200,) * 2)
    store = disk_store(model, written)
    take_turn(model, text(300, 5), store)
    store.flush()
    assert young.exists()
    assert not old.exists()


def test_size_and_clear(written: Path) -> None:
    blocks = BlockFolder(written, 0)
    size = sum(path.stat().st_size for path in files(written))
    assert blocks.size == blocks.clear() == size
    assert (blocks.size, list(written.iterdir())) == (0, [])
    assert BlockFolder(written / "nowhere", 0).clear() == 0


# --- beside a reply


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing stops at every second part until the event is set."""
    go = threading.Event()
    segments = HostView.segments

    def wait(self: HostView, index: int) -> Iterator[Any]:
        for place, segment in enumerate(segments(self, index)):
            if place % 2:
                go.wait(0.02)
            yield segment

    monkeypatch.setattr(HostView, "segments", wait)
    yield go
    go.set()


def test_a_cache_that_is_wanted_is_not_waited_for(
    slow: threading.Event, model: Transformer, tmp_path: Path
) -> None:
    """The next turn comes while the last one's blocks are being written."""
    store = disk_store(model, tmp_path)
    prompt = PROMPT
    for turn in range(3):
        done = take_turn(model, prompt, store)
        assert done.token_ids == take_turn(model, prompt).token_ids
        assert done.cached > 0 or turn == 0
        prompt = prompt + done.token_ids + text(30, turn + 1)
    slow.set()
    assert store.flush()
    blocks = [path for path in files(tmp_path) if path.suffix == ".safetensors"]
    assert blocks == files(tmp_path)  # nothing half written
    turn_again = open_turn(model, prompt, disk_store(model, tmp_path))
    assert turn_again.cached == len(blocks) * BLOCK_TOKENS == 3 * BLOCK_TOKENS
    tokens = [turn_again.loop.next().token_id for _ in range(8)]
    assert tokens == take_turn(model, prompt).token_ids


def test_writing_sees_the_cache_as_it_was(
    slow: threading.Event, model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a reply that does not wait at all cannot change what is being written."""
    monkeypatch.setattr("mlx_qwen3.engine.writer.Writer.withdraw", lambda *_: None)
    store = disk_store(model, tmp_path)
    take_turn(model, PROMPT, store)
    expected = open_turn(model, PROMPT).cache
    other = PROMPT[:50] + text(800, 3)
    entry = store._pool.entries[0]
    entry.prompt_tokens = 50  # so that it is taken, cut, and written over
    assert open_turn(model, other, store).cached == 50
    slow.set()
    assert store.flush()
    turn = open_turn(model, NEXT, disk_store(model, tmp_path))
    assert turn.cached == 3 * BLOCK_TOKENS
    pairs = zip(columns(turn.cache, 768), columns(expected, 768), strict=True)
    assert all(bool(mx.allclose(a, b, atol=1e-4)) for a, b in pairs)


def test_too_large_for_memory_still_goes_to_disk(model: Transformer, tmp_path: Path) -> None:
    store = disk_store(model, tmp_path, budget=0)
    take_turn(model, PROMPT, store)
    assert store.flush()
    assert (store.nbytes, len(files(tmp_path))) == (0, 3)
    assert take_turn(model, NEXT, store).cached == 3 * BLOCK_TOKENS


def test_the_writer_goes_when_its_work_is_done(model: Transformer, tmp_path: Path) -> None:
    store = disk_store(model, tmp_path)
    take_turn(model, PROMPT, store)
    assert store.flush()
    deadline = time.monotonic() + 10
    while any(one.name == "prefix-writer" for one in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_block_takes_what_its_layout_says(written: Path, model: Transformer) -> None:
    layout = Layout.of(open_turn(model, text(40)).cache)
    assert {path.stat().st_size for path in files(written)} == {layout.file_bytes}
    assert layout.token_bytes == 3 * 2 * 3 * 32 * 4  # layers, keys and values, heads, float32
