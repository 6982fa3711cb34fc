"""--upload, --eval and the model card, against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen3_convert.card import has_evaluation, with_evaluation, with_place
from mlx_qwen3_convert.readers.licence import folder_licence, gguf_licence
from tests.checkpoints import write_checkpoint
from tests.hub_server import COMMIT, HubServer
from tests.model.tiny_models import TINY_MODELS

ROOT = Path(__file__).parents[2]
REPO = "someone/tiny-4bit"
CONFIG = TINY_MODELS["dense"].config | {
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
    "num_hidden_layers": 1,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "tiny"
    write_checkpoint(folder, CONFIG, 1, dtype="bfloat16")
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# Tiny\n")
    return folder


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer("someone/other", {})
    yield server
    server.close()


def convert(
    source: Path, out: Path, server: HubServer, *options: str, token: str | None = "hf_write"
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(out.parent / "home"),
        "XDG_CACHE_HOME": str(out.parent / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # its protocol is not one a test can speak
        "NO_PROXY": "127.0.0.1",
    }
    env.pop("HF_TOKEN", None)
    if token is not None:
        env["HF_TOKEN"] = token
    command = [sys.executable, "-m", "mlx_qwen3_convert", str(source), "--out", str(out)]
    return subprocess.run(
        [*command, *options], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )


def uploads(server: HubServer) -> int:
    return sum(method == "PUT" for method, _, _ in server.requests)


def test_what_was_converted_is_on_the_hub(source: Path, hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = convert(source, out, hub, "--upload", REPO, "--private")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{REPO}"
    assert hub.repos[REPO] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert REPO in hub.private
    assert f'generate "Hello" --model {REPO}' in hub.repos[REPO]["README.md"].decode()


def test_again_with_the_same_arguments_only_uploads(
    source: Path, hub: HubServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert convert(source, out, hub, "--bits", "8").returncode == 0
    before = (out / "model.safetensors").stat()
    done = convert(source, out, hub, "--bits", "8", "--upload", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"folder": str(out), "uploaded": f"{hub.url}/{REPO}"}
    after = (out / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert uploads(hub) == 1
    # And once more: the weights are there already.
    assert convert(source, out, hub, "--bits", "8", "--upload", REPO).returncode == 0
    assert uploads(hub) == 1


@pytest.mark.parametrize("options", [["--bits", "3"], ["--dtype", "float32"], ["--auto", "5"]])
def test_a_folder_that_others_arguments_made_is_not_uploaded(
    options: list[str], source: Path, hub: HubServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert convert(source, out, hub).returncode == 0
    done = convert(source, out, hub, *options, "--upload", REPO)
    assert done.returncode == 1
    assert "exists; choose another --out" in done.stderr
    assert REPO not in hub.repos


def test_old_weights_of_the_repository_go(source: Path, hub: HubServer, tmp_path: Path) -> None:
    hub.repos[REPO] = {"model-00001-of-00002.safetensors": b"old", "notes.md": b"mine"}
    assert convert(source, tmp_path / "out", hub, "--upload", REPO).returncode == 0
    files = set(hub.repos[REPO])
    assert "model-00001-of-00002.safetensors" not in files
    assert files >= {"notes.md", "model.safetensors", "config.json"}
    assert len(hub.commits) == 1


REFUSED = [
    (None, [], "no token; uploading needs a token with write access"),
    ("hf_read", [], "the token may only read"),
    ("hf_gone", [], "does not know this token"),
    ("hf_write", ["--private"], "exists and is public"),
]


@pytest.mark.parametrize(("token", "options", "said"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_would_fail_fails_before_the_work(
    token: str | None, options: list[str], said: str, source: Path, hub: HubServer, tmp_path: Path
) -> None:
    hub.repos[REPO] = {}
    out = tmp_path / "out"
    done = convert(source, out, hub, "--upload", REPO, *options, token=token)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--upload", "no-owner"], "expected OWNER/NAME"),
        (["--private"], "--private is of --upload"),
        (["--revision", "main"], "is a path"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], said: str, source: Path, hub: HubServer, tmp_path: Path
) -> None:
    done = convert(source, tmp_path / "out", hub, *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert hub.requests == []


def test_a_namespace_of_others_is_one_line_and_keeps_the_work(
    source: Path, hub: HubServer, tmp_path: Path
) -> None:
    hub.closed_namespaces.add("qwen")
    done = convert(source, tmp_path / "out", hub, "--upload", "qwen/tiny")
    assert done.returncode == 1
    assert "this token may not write there" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out/model.safetensors").is_file()


def test_no_network_is_one_line(source: Path, tmp_path: Path, hub: HubServer) -> None:
    hub.close()
    done = convert(source, tmp_path / "out", hub, "--upload", REPO)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the connection failed" in done.stderr


def test_the_card_tells_what_was_measured(source: Path, hub: HubServer, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "out", hub, "--eval", "--upload", REPO, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["evaluation"]
    card = hub.repos[REPO]["README.md"].decode()
    assert f"| perplexity | {figures['perplexity']:.4g} |" in card
    assert f"| KL divergence, mean | {figures['kl']['mean']:.4f} |" in card
    assert figures["kl"]["mean"] > 0
    assert "from the source" in card
    assert str(tmp_path) not in card


def test_what_cannot_be_a_reference_leaves_perplexity(hub: HubServer, tmp_path: Path) -> None:
    from tests.convert.readers.formats import write_awq

    packed = write_awq(tmp_path / "awq", CONFIG, group_size=32)
    assert convert(packed, tmp_path / "out", hub, "--eval").returncode == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "| perplexity |" in card
    assert "divergence" not in card


def test_the_card_of_a_plain_conversion(source: Path, hub: HubServer, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "out", hub, "--bits", "4").returncode == 0
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: mlx\n")
    assert "tiny (safetensors bf16), converted by mlx-qwen3: recipe `4bit`" in card
    assert "bits per weight" in card
    assert "mlx_lm.generate --model" in card
    assert "base_model" not in card  # a folder is no repository
    assert str(tmp_path) not in card
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert (record["source"], record["revision"], record["recipe"]) == ("tiny", None, "4bit")
    fates = {tensor["name"]: tensor for tensor in record["tensors"]}
    assert fates["lm_head.weight"]["action"] == "quantized"
    assert fates["model.norm.weight"]["action"] == "copied"


def test_a_folder_of_the_cache_says_where_it_is_from(
    source: Path, hub: HubServer, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-Tiny/snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(source)
    assert convert(snapshot, tmp_path / "out", hub).returncode == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "base_model: Qwen/Qwen3-Tiny" in card
    assert f"(https://huggingface.co/Qwen/Qwen3-Tiny) at revision `{COMMIT}`" in card


CARD = "---\nlicense: mit\n---\n\n# X\n\n## Run\n\n    mlx-qwen3 generate --model PATH/A B\n"


def test_an_evaluation_replaces_the_one_before() -> None:
    once = with_evaluation(CARD, "first\n")
    assert has_evaluation(once)
    assert not has_evaluation(CARD)
    assert once == CARD + "\n## Evaluation\n\nfirst\n"
    more = once + "\n## Notes\n\nmine\n"
    assert with_evaluation(more, "second") == more.replace("first", "second")


def test_commands_name_the_repository() -> None:
    assert "--model a/b B" in with_place(CARD, "a/b")
    assert with_place(with_place(CARD, "a/b"), "c/d") == with_place(CARD, "c/d")


LICENCES = [
    ({"README.md": "---\nlicense: apache-2.0\n---\n"}, {"license": "apache-2.0"}),
    (
        {"README.md": "---\nlicense: other\nlicense_name: 'x-1'\nlicense_link: LICENSE\n---\n"},
        {"license": "other", "license_name": "x-1", "license_link": "LICENSE"},
    ),
    ({"README.md": "license: mit\n"}, {}),  # outside the front matter it is prose
    ({"LICENSE": "Apache License\nVersion 2.0"}, {"license": "apache-2.0"}),
    ({"LICENSE": "Mine."}, {"license": "other", "license_link": "LICENSE"}),
    ({}, {}),
]


@pytest.mark.parametrize(("files", "found"), LICENCES)
def test_licences(files: dict[str, str], found: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert folder_licence(tmp_path) == found


def test_a_licence_in_a_gguf_is_plain_words() -> None:
    assert gguf_licence({"general.license": "apache-2.0"}) == {"license": "apache-2.0"}
    assert gguf_licence({"general.license": "x\nlibrary_name: y"}) == {}
