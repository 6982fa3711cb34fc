"""hub: names to folders. Downloads run in a process of their own against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen3 import hub, releases
from mlx_qwen3.errors import ModelNotFoundError, Qwen3Error
from tests.hub_server import COMMIT, HubServer

REPO = "someone/tiny-qwen3"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    ).encode(),
    SHARDS[0]: bytes(range(256)) * 64,
    SHARDS[1]: bytes(reversed(range(256))) * 64,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"model_max_length": 4096}',
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"a pickle",
    "model.gguf": b"GGUF",
    "README.md": b"# tiny",
}
WANTED = set(FILES) - {"pytorch_model.bin", "model.gguf"}

RESOLVE = """
import sys
from mlx_qwen3.errors import Qwen3Error
from mlx_qwen3.hub import resolve
steps = []
try:
    print(resolve(sys.argv[1], revision=sys.argv[2] or None, progress=lambda *x: steps.append(x)))
    print(steps[-1] if steps else "no progress")
except Qwen3Error as error:
    print(type(error).__name__, error)
print("imported" if "huggingface_hub" in sys.modules else "not imported")
"""


@pytest.fixture
def server() -> Iterator[HubServer]:
    server = HubServer(REPO, dict(FILES))
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, for this process too."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


def environment(endpoint: str, **extra: str) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **extra}


def run_resolve(endpoint: str, revision: str = "", repo: str = REPO, **extra: str) -> list[str]:
    """What resolve printed: a folder and progress, or an error; and what it had imported."""
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, repo, revision],
        env=environment(endpoint, **extra),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def fill_cache(cache: Path, repo: str = REPO, without: tuple[str, ...] = ()) -> Path:
    """Put a snapshot into a cache as huggingface_hub does: blobs, and links to them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for place in (folder / "refs", folder / "blobs", snapshot):
        place.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name in WANTED - set(without):
        (folder / "blobs" / name).write_bytes(FILES[name])
        (snapshot / name).symlink_to(folder / "blobs" / name)
    return snapshot


# --- names ---------------------------------------------------------------------------------


def test_a_folder_is_its_own_name(tmp_path: Path) -> None:
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_a_known_name_wins_over_a_folder_unless_it_is_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "8b").mkdir()
    monkeypatch.chdir(tmp_path)
    snapshot = fill_cache(cache, releases.find("8b").repo)
    assert hub.resolve("8B") == snapshot
    assert hub.resolve("./8b") == Path("8b")


def test_a_folder_called_owner_name_is_used_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(REPO) == Path(REPO)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        hub.resolve(name)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        hub.resolve(str(file))


def test_an_unknown_name_gets_the_closest_ones() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 4b-instruct-2507"):
        hub.resolve("4b-instrct-2507")


# --- the cache, without huggingface_hub ------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/x", "HF_HOME": "/y"}, "/x"),
        ({"HF_HOME": "/y"}, "/y/hub"),
        ({"XDG_CACHE_HOME": "/z"}, "/z/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(variables: dict[str, str], folder: str) -> None:
    assert hub.cache_folder(variables) == Path(folder).expanduser()
    script = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "HUGGING"))}
    theirs = subprocess.check_output([sys.executable, "-c", script], env=clean | variables)
    assert theirs.decode().strip() == str(hub.cache_folder(variables))


def test_a_complete_snapshot_needs_no_download(cache: Path) -> None:
    snapshot = fill_cache(cache)
    assert hub.resolve(REPO, download=False) == snapshot
    assert hub.resolve(REPO, revision=COMMIT, download=False) == snapshot


@pytest.mark.parametrize("missing", ["config.json", SHARDS[1], "tokenizer.json"])
def test_an_incomplete_snapshot_is_not_used(cache: Path, missing: str) -> None:
    fill_cache(cache, without=(missing,))
    with pytest.raises(ModelNotFoundError, match="mlx-qwen3 pull"):
        hub.resolve(REPO, download=False)


def test_a_link_to_a_blob_that_is_gone_counts_as_missing(cache: Path) -> None:
    snapshot = fill_cache(cache)
    (snapshot / SHARDS[0]).resolve().unlink()
    assert hub.missing_weights(snapshot) == [SHARDS[0]]


def test_list_local_finds_qwen3_models_only(cache: Path) -> None:
    fill_cache(cache)
    fill_cache(cache, "someone/half", without=(SHARDS[0],))
    other = fill_cache(cache, "someone/llama")
    (other / "config.json").unlink()
    (other / "config.json").write_text('{"model_type": "llama"}')
    half, whole = hub.list_local()
    assert (half.repo, half.complete) == ("someone/half", False)
    assert (whole.repo, whole.complete) == (REPO, True)
    assert whole.size == sum(len(FILES[name]) for name in WANTED)


def test_no_space_is_noticed_before_the_download(cache: Path) -> None:
    with pytest.raises(Qwen3Error, match="make room, or set HF_HOME"):
        hub.refuse_without_space(REPO, 10**18)
    hub.refuse_without_space(REPO, 1)


# --- downloads -------------------------------------------------------------------------------


def test_download_then_no_request_and_no_import(server: HubServer, cache: Path) -> None:
    folder, progress, imported = run_resolve(server.url)
    assert {file.name for file in Path(folder).iterdir()} == WANTED
    assert (Path(folder) / SHARDS[1]).read_bytes() == FILES[SHARDS[1]]
    total = sum(len(FILES[name]) for name in WANTED)
    assert progress == str((total, total))
    assert imported == "imported"

    asked = len(server.requests)
    assert run_resolve(server.url) == [folder, "no progress", "not imported"]
    assert len(server.requests) == asked


def test_a_broken_connection_goes_on_in_the_middle_of_the_file(
    server: HubServer, cache: Path
) -> None:
    # huggingface_hub writes 10 MiB at a time, and goes on from what it has written.
    large = bytes(range(256)) * (24 << 12)
    server.files[SHARDS[0]] = large
    server.cut.add(SHARDS[0])
    folder, *_ = run_resolve(server.url)
    assert (Path(folder) / SHARDS[0]).read_bytes() == large
    first, second = server.fetched(SHARDS[0])
    assert "range" not in first
    assert second["range"] == f"bytes={10 << 20}-"


def test_a_second_attempt_keeps_the_finished_files(server: HubServer, cache: Path) -> None:
    server.broken.add(SHARDS[1])
    error, _ = run_resolve(server.url)
    assert error.startswith("ModelNotFoundError")
    server.broken.clear()
    folder, *_ = run_resolve(server.url)
    assert (Path(folder) / SHARDS[1]).read_bytes() == FILES[SHARDS[1]]
    assert len(server.fetched(SHARDS[0])) == 1


def test_the_token_is_sent(server: HubServer, cache: Path) -> None:
    run_resolve(server.url, HF_TOKEN="hf_secret")
    assert {headers["authorization"] for _, _, headers in server.requests} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((403, "GatedRepo"), "asks for an agreement first"),
        ((404, "RepoNotFound"), "There is no repository someone/tiny-qwen3"),
        ((503, "Overloaded"), "answered 503 for someone/tiny-qwen3: try again later"),
    ],
)
def test_a_refusal_says_what_to_do(
    server: HubServer, cache: Path, refusal: tuple[int, str], expected: str
) -> None:
    server.refusal = refusal
    error, _ = run_resolve(server.url)
    assert error.startswith("ModelNotFoundError")
    assert expected in error


def test_an_unknown_revision(server: HubServer, cache: Path) -> None:
    error, _ = run_resolve(server.url, revision="v9")
    assert error == "ModelNotFoundError someone/tiny-qwen3 has no revision v9"


def test_a_repository_without_safetensors(server: HubServer, cache: Path) -> None:
    for name in (*SHARDS, "model.safetensors.index.json"):
        del server.files[name]
    error, _ = run_resolve(server.url)
    assert "needs a repository in safetensors format" in error


def test_no_network(cache: Path) -> None:
    error, _ = run_resolve("http://127.0.0.1:9")
    assert error.startswith("ModelNotFoundError")
    assert "connect to the network and run it again" in error


def test_offline_mode_says_so_at_once(cache: Path) -> None:
    error, imported = run_resolve("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in error
    assert imported == "not imported"


def test_an_interrupt_ends_a_download_that_stalls(server: HubServer, cache: Path) -> None:
    server.stall.add(SHARDS[0])
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_qwen3.cli", "pull", REPO],
        env=environment(server.url),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stalled.wait(30)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == ""
    assert time.monotonic() - began < 8
