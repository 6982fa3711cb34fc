"""Where the package's own cache lies."""

from pathlib import Path

import pytest

from mlx_qwen3.storage import storage_folder


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("linux", {}, "~/.cache/mlx-qwen3/tokenizers"),
        ("linux", {"XDG_CACHE_HOME": "/var/mine"}, "/var/mine/mlx-qwen3/tokenizers"),
        ("linux", {"MLX_QWEN3_CACHE": "~/c", "XDG_CACHE_HOME": "/v"}, "~/c/tokenizers"),
        ("darwin", {}, "~/Library/Caches/mlx-qwen3/tokenizers"),
        ("darwin", {"XDG_CACHE_HOME": "/v"}, "~/Library/Caches/mlx-qwen3/tokenizers"),
        ("darwin", {"MLX_QWEN3_CACHE": "/elsewhere"}, "/elsewhere/tokenizers"),
    ],
)
def test_storage_folder(system: str, environment: dict[str, str], expected: str) -> None:
    assert storage_folder("tokenizers", environment, system) == Path(expected).expanduser()
