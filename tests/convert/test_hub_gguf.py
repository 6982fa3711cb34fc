"""GGUF files of a repository, from a hub on 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.convert.readers.cases import CONFIGS
from tests.convert.readers.gguf_files import write_gguf
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]
REPO = "someone/tiny-GGUF"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("gguf")
    whole = write_gguf(root / "whole", CONFIGS["dense"], 1, type="Q4_0")
    parts = write_gguf(root / "parts", CONFIGS["dense"], 1, type="Q4_0", parts=3).parent
    named = {f"split/{path.name}": path.read_bytes() for path in parts.glob("*.gguf")}
    return {"tiny-Q4_0.gguf": whole.read_bytes(), "README.md": b"# tiny", **named}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    server = HubServer(REPO, dict(files))
    yield server
    server.close()


def convert(source: str, out: Path, server: HubServer) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(out.parent / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "mlx_qwen3_convert", source, "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_one_file_is_downloaded_and_converted(hub: HubServer, tmp_path: Path) -> None:
    done = convert(f"{REPO}/tiny-Q4_0.gguf", tmp_path / "out", hub)
    assert done.returncode == 0, done.stderr
    assert "repacked exactly" in done.stdout
    assert f"base_model: {REPO}" in (tmp_path / "out/README.md").read_text()
    fetched = {path.rsplit("/", 1)[1] for method, path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"tiny-Q4_0.gguf"}
    asked = len(hub.requests)
    assert convert(f"{REPO}/tiny-Q4_0.gguf", tmp_path / "again", hub).returncode == 0
    assert len(hub.requests) == asked


def test_a_split_file_comes_with_all_its_parts(hub: HubServer, tmp_path: Path) -> None:
    first = next(name for name in hub.files if "00001-of" in name)
    done = convert(f"{REPO}/{first}", tmp_path / "split", hub)
    assert done.returncode == 0, done.stderr
    assert convert(f"{REPO}/tiny-Q4_0.gguf", tmp_path / "whole", hub).returncode == 0
    weights = [tmp_path / name / "model.safetensors" for name in ("split", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (REPO, "it has GGUF files: `mlx-qwen3 convert someone/tiny-GGUF/"),
        (f"{REPO}/tiny-Q8_0.gguf", "has no tiny-Q8_0.gguf; its GGUF files: split/"),
        ("someone/else/x.gguf", "There is no repository someone/else"),
    ],
)
def test_what_is_missing_is_one_line(
    source: str, said: str, hub: HubServer, tmp_path: Path
) -> None:
    done = convert(source, tmp_path / "out", hub)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert not list(tmp_path.glob("out*"))
