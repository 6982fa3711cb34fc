"""Conversions of a repository that is never whole on this disk, from a hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3_convert.job import convert
from mlx_qwen3_convert.schedule import most_held, schedule
from tests.checkpoints import write_checkpoint
from tests.convert.readers import formats
from tests.convert.shards import split
from tests.hub_server import COMMIT, HubServer
from tests.model.tiny_models import TINY_MODELS

ROOT = Path(__file__).parents[2]
REPO = "someone/tiny-qwen3"
SIZES = {
    "hidden_size": 256,
    "head_dim": 32,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "torch_dtype": "bfloat16",
}
CONFIGS = {name: TINY_MODELS[name].config | SIZES for name in ("dense", "moe")}
SHARDS = 5
WRITERS: dict[str, Callable[..., Path]] = {
    "bfloat16": lambda folder, config: write_checkpoint(folder, config, 1, dtype="bfloat16"),
    "stacked": formats.write_stacked,
    "fp8": formats.write_fp8,
    "gptq": formats.write_gptq,
    "desc_act": lambda folder, config: formats.write_gptq(
        folder, config, desc_act=True, group_size=64
    ),
    "awq": formats.write_awq,
    "mlx": formats.write_mlx,
}
CASES = [("bfloat16", "dense"), *((name, "moe") for name in WRITERS)]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """sharded(format, config): a checkpoint in five files; read it, do not change it."""
    root = tmp_path_factory.mktemp("sharded")

    def folder(name: str, config: str) -> Path:
        out = root / f"{name}-{config}"
        if not out.exists():
            whole = WRITERS[name](root / f"{name}-{config}-whole", CONFIGS[config])
            (whole / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
            split(whole, out, SHARDS)
        return out

    return folder


@pytest.fixture
def hub() -> Iterator[Callable[[Path], HubServer]]:
    """hub(folder): a hub that serves it."""
    servers: list[HubServer] = []

    def serve(folder: Path) -> HubServer:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        servers.append(HubServer(REPO, files))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


Hub = Callable[[Path], HubServer]
Sharded = Callable[[str, str], Path]


def environment(server: HubServer, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }


def command(*options: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "mlx_qwen3_convert", REPO, "--out", str(out), *options]


def stream(
    server: HubServer, tmp_path: Path, *options: str, out: str = "out"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--stream-from-hub", *options, out=tmp_path / out),
        cwd=ROOT,
        env=environment(server, tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def whole(server: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """What comes of the repository when all of it lies in a cache of Hugging Face."""
    cached = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    cached.mkdir(parents=True)
    for name, data in server.files.items():
        (cached / name).write_bytes(data)
    return contents(convert(cached, tmp_path / "whole").folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(server: HubServer) -> list[str]:
    return sorted(name for name in server.files if name.endswith(".safetensors"))


def disk_use(folder: Path) -> int:
    """Bytes of the weights that the disk holds, those half downloaded too."""
    found = 0
    for path in folder.rglob("*"):
        if path.suffix in (".safetensors", ".incomplete"):
            found += path.stat().st_size
    return found


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_same_bytes_as_from_the_whole_repository(
    name: str, config: str, sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    server = hub(sharded(name, config))
    held: list[int] = []
    server.on_get = lambda file: held.append(disk_use(tmp_path / "out.source"))
    done = stream(server, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    largest = max(len(server.files[file]) for file in shards(server))
    assert [server.downloads(file) for file in shards(server)] == [1] * SHARDS
    # While one is downloaded, at most one is still held for what lies in both.
    assert max(held) <= largest * 1.02
    server.on_get = lambda file: None
    assert contents(tmp_path / "out") == whole(server, tmp_path)
    # Nothing is left, and the weights were never in the cache.
    assert not list(tmp_path.glob("out.*"))
    assert disk_use(tmp_path / "home") == 0


def test_the_same_bytes_as_from_the_same_command_that_downloads_first(
    sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    server = hub(sharded("bfloat16", "moe"))
    assert stream(server, tmp_path).returncode == 0
    done = subprocess.run(
        command(out=tmp_path / "downloaded"),
        cwd=ROOT,
        env=environment(server, tmp_path),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "downloaded")


def test_headers_come_before_any_shard(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    """What cannot be converted is refused before gigabytes are here."""
    server = hub(sharded("bfloat16", "moe"))
    done = stream(server, tmp_path, "--set", "*.nope=4")
    assert done.returncode == 1
    assert "*.nope" in done.stderr
    assert not list(tmp_path.glob("out*"))
    assert done.stderr.count("\n") == 1
    assert [server.downloads(file) for file in shards(server)] == [0] * SHARDS
    assert all(len(server.fetched(file)) == 1 for file in shards(server))


KILLED = """
import os, signal, sys
from mlx_qwen3_convert.streaming import convert_from_hub
def progress(done, total):
    if done > total * float(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
convert_from_hub(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_a_killed_run_is_resumed_and_downloads_no_shard_again(
    sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    server = hub(sharded("gptq", "moe"))
    shares = ("0.1", "0.5", "0.8")
    for share in shares:
        script = [sys.executable, "-c", KILLED, REPO, tmp_path / "out", share]
        env = environment(server, tmp_path)
        done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "out").exists()
    done = stream(server, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_bytes"] > 0
    # progress is told when a download has begun, so a kill may fall into one.
    assert all(1 <= server.downloads(file) <= 2 for file in shards(server))
    assert sum(server.downloads(file) for file in shards(server)) <= SHARDS + len(shares)
    assert contents(tmp_path / "out") == whole(server, tmp_path)
    assert not list(tmp_path.glob("out.*"))


def test_a_shard_that_was_finished_is_used(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    """Killed in the middle of converting it: it is still there, and good."""
    server = hub(sharded("bfloat16", "moe"))
    first, second = shards(server)[:2]
    server.stall.add(second)
    process = subprocess.Popen(
        command("--stream-from-hub", out=tmp_path / "out"),
        cwd=ROOT,
        env=environment(server, tmp_path),
    )
    assert server.stalled.wait(60)
    process.kill()
    process.wait()
    server.stall.clear()
    assert list((tmp_path / "out.source").rglob("*.incomplete"))
    done = stream(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (server.downloads(first), server.downloads(second)) == (1, 2)
    assert contents(tmp_path / "out") == whole(server, tmp_path)


def test_another_commit_starts_afresh(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    server = hub(sharded("bfloat16", "dense"))
    source = tmp_path / "out.source"
    source.mkdir()
    (source / "commit.json").write_text(json.dumps({"repo": REPO, "commit": "0" * 40}))
    name = shards(server)[0]
    (source / name).write_bytes(server.files[name])
    assert stream(server, tmp_path).returncode == 0
    assert server.downloads(name) == 1


def test_damaged_bytes_are_noticed(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    server = hub(sharded("bfloat16", "dense"))
    name = shards(server)[2]
    server.damaged.add(name)
    done = stream(server, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{name}: not the bytes that the hub announces" in done.stderr
    assert not (tmp_path / "out").exists()
    server.damaged.clear()
    assert stream(server, tmp_path).returncode == 0
    assert contents(tmp_path / "out") == whole(server, tmp_path)


def test_biases_of_zeros_are_checked_when_they_are_here(
    sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    """Old packers gave every projection a bias; headers cannot tell that it is empty."""
    import numpy as np

    for value, code in ((0.0, 0), (0.5, 1)):
        folder = tmp_path / f"biased-{code}"
        packed = formats.write_gptq(folder, CONFIGS["dense"])
        raws = formats.read_raw(folder)
        found: dict[str, formats.Raw] = {}
        for name, array in raws.items():
            kind = {"int32": "I32", "float32": "F32"}[str(array.dtype)]
            found[name] = (kind, array)
            if name.endswith(".qweight"):
                bias = np.full(array.shape[1], value, np.float32)
                found[name.replace(".qweight", ".bias")] = ("F32", bias)
        formats.write_raw(packed / "model.safetensors", found)
        server = hub(split(packed, tmp_path / f"sharded-{code}", 3))
        done = stream(server, tmp_path, out=f"out-{code}")
        assert done.returncode == code, done.stderr
        assert ("_proj.bias is not part of this architecture" in done.stderr) == bool(code)
        assert (tmp_path / f"out-{code}").exists() != bool(code)


@pytest.mark.slow
def test_kills_at_random_moments(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    server = hub(sharded("bfloat16", "moe"))
    env, moments = environment(server, tmp_path), random.Random(7)
    for _ in range(4):
        process = subprocess.Popen(
            command("--stream-from-hub", out=tmp_path / "out"),
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0.8, 2.5))
        process.kill()
        if process.wait() == 0:
            shutil.rmtree(tmp_path / "out")
    done = stream(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == whole(server, tmp_path)
    assert not list(tmp_path.glob("out.*"))


WRONG: list[tuple[Sequence[str], str]] = [
    (["--auto", "4.5"], "never has the whole model"),
    (["--learned", "gptq"], "never has the whole model"),
    (["--bits", "7"], "bits is 7"),
    (["--revision", "v9"], "no revision v9"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_cannot_be_is_one_line(
    options: Sequence[str], said: str, sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    done = stream(hub(sharded("bfloat16", "dense")), tmp_path, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_a_refusal_of_the_hub_is_one_line(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    server = hub(sharded("bfloat16", "dense"))
    server.refusal = (403, "GatedRepo")
    done = stream(server, tmp_path)
    assert "asks for an agreement first" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_card_names_repository_and_revision(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    assert stream(hub(sharded("bfloat16", "dense")), tmp_path).returncode == 0
    card = (tmp_path / "out/README.md").read_text()
    assert f"base_model: {REPO}" in card
    assert f"`{COMMIT}`" in card
    assert "license: apache-2.0" in card


# --- the order ---------------------------------------------------------------------------------


def needs(*words: str) -> list[frozenset[str]]:
    return [frozenset(word) for word in words]


@pytest.mark.parametrize(
    ("found", "most"),
    [
        (needs("a", "b", "c"), 1),
        (needs("a", "ab", "b", "bc", "c", "cd", "d"), 2),
        (needs("c", "ac", "a", "db", "d", "ad"), 2),  # a chain whose names are shuffled
        (needs("ab", "bc", "ca"), 3),
        (needs("x", "xa", "xb", "xc"), 2),  # one that all need
        ([], 0),
    ],
)
def test_the_order_holds_the_fewest(found: list[frozenset[str]], most: int) -> None:
    steps = list(schedule(found))
    sizes: dict[str, Any] = dict.fromkeys("abcdx", 1)
    assert most_held(steps, sizes) == most
    assert sorted(item for step in steps for item in step.items) == list(range(len(found)))
    held: set[str] = set()
    fetched: list[str] = []
    for step in steps:
        held |= set(step.fetch)
        fetched += step.fetch
        assert all(found[item] <= held for item in step.items)
        held -= set(step.drop)
    assert not held
    assert len(fetched) == len(set(fetched))


def test_what_is_there_is_used_first() -> None:
    first, *_ = schedule(needs("a", "b", "bc", "c"), present=["b"])
    assert (first.fetch, first.items) == ((), (1,))


# --- bad lines ---------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up(sharded: Sharded, hub: Hub, tmp_path: Path) -> None:
    server = hub(sharded("bfloat16", "dense"))
    name = shards(server)[1]
    server.cut.add(name)
    done = stream(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.downloads(name) == 2
    assert contents(tmp_path / "out") == whole(server, tmp_path)


def test_a_shard_that_is_refused_ends_it_in_one_line(
    sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    server = hub(sharded("bfloat16", "dense"))
    name = shards(server)[-1]
    first = shards(server)[0]
    server.on_get = lambda _: server.broken.update({name} if server.downloads(first) else ())
    done = stream(server, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    server.on_get = lambda file: None
    server.broken.clear()
    assert stream(server, tmp_path).returncode == 0
    assert [server.downloads(file) for file in shards(server)] == [1, 1, 1, 1, 2]


def test_an_interrupt_ends_a_download_that_stalls(
    sharded: Sharded, hub: Hub, tmp_path: Path
) -> None:
    server = hub(sharded("bfloat16", "dense"))
    server.stall.add(shards(server)[1])
    process = subprocess.Popen(
        command("--stream-from-hub", out=tmp_path / "out"),
        cwd=ROOT,
        env=environment(server, tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")
    assert not (tmp_path / "out").exists()


def test_a_disk_too_small_for_output_and_shards_is_told_first(
    sharded: Sharded, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run in this process, where the free space can be told."""
    server = hub(sharded("bfloat16", "dense"))
    for key, value in environment(server, tmp_path).items():
        monkeypatch.setenv(key, value)
    largest = max(len(server.files[file]) for file in shards(server))
    script = f"""
import shutil
usage = shutil.disk_usage(".")
shutil.disk_usage = lambda _: usage._replace(free={largest + 1000})
from mlx_qwen3.cli import run
raise SystemExit(run(["convert", "{REPO}", "--out", "{tmp_path}/out", "--stream-from-hub"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "GB needed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [server.downloads(file) for file in shards(server)] == [0] * SHARDS
